"""Many worlds in the same ranks: nothing of one is left in the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import TINY, run_each
from training import train

from launcher.layout import Layout

LAYOUTS = [
    Layout(tp=2, pp=2, dp=1, micro_batch=2),  # gradients by hooks, a group for the tied weights
    Layout(tp=2, pp=1, dp=2, micro_batch=4),  # DistributedDataParallel
    Layout(tp=2, pp=1, dp=2, zero_stage=1, micro_batch=4),  # FSDP2
    Layout(tp=1, pp=1, dp=2, cp=2, zero_stage=3, micro_batch=4),  # a mesh that is flattened
]


def num_threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def threads_left(layout: Layout, first: list[int]) -> Callable[[int], int]:
    """A rank's body: the threads that it has more than when its first world began; `first` is for that number."""

    def body(rank: int) -> int:
        first.append(num_threads())
        deadline = time.monotonic() + 20
        while num_threads() > first[0] and time.monotonic() < deadline:
            time.sleep(0.05)  # the kernel may list a thread for a moment after it was joined
        left = num_threads() - first[0]
        train(layout, rank, model=TINY, optimizer="sgd", num_steps=1)
        assert num_threads() > first[0]
        return left

    return body


@pytest.mark.slow
def test_no_thread_of_a_worlds_process_groups_is_left_in_the_next() -> None:
    first: list[int] = []
    bodies = {str(number): threads_left(layout, first) for number, layout in enumerate([*LAYOUTS, LAYOUTS[0]])}
    for found in run_each(4, bodies):
        assert {name: left for name, left in found.items() if left > 0} == {}
