"""The tests' own ranks: what they are spared, and what they say when they hang."""

from __future__ import annotations

import gc
import os
import time
from typing import Any

import pytest
from ranks import run_ranks


class Store:
    """As a store of torch: it ends only where it was made."""

    def __init__(self) -> None:
        self.owner, self.itself = os.getpid(), self

    def __del__(self) -> None:
        while os.getpid() != self.owner:
            time.sleep(1)


def test_ranks_do_not_collect_what_their_parent_left() -> None:
    Store()  # a circle: garbage from here on

    def body(rank: int) -> int:
        gc.collect()
        return rank

    assert run_ranks(2, body, timeout_s=60) == [0, 1]


def test_ranks_that_hang_say_where() -> None:
    def body(rank: int) -> Any:
        if rank == 1:
            time.sleep(3600)

    with pytest.raises(TimeoutError, match=r"(?s)2 of 2 ranks did not answer.*rank 0:.*in barrier.*rank 1:.*in body"):
        run_ranks(2, body, timeout_s=10)  # by then a rank is in the barrier, on a busy machine, too
