"""Runs a recipe in which the collectives of one rank begin late: sleepy_rank.py, started by fork_ranks.py.

The rank of SLEEPY_RANK sleeps before each of them.
"""

from __future__ import annotations

import os
import runpy
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

SLEEP_S = float(
    os.environ.get("SLEEPY_S", "0.03")
)  # far above what a small collective takes on a loaded machine, far below a test's patience


def late(call: Callable[..., Any]) -> Callable[..., Any]:
    def slept(*given: Any, **named: Any) -> Any:
        time.sleep(SLEEP_S)
        return call(*given, **named)

    return slept


if os.environ["RANK"] == os.environ["SLEEPY_RANK"]:
    dist.all_reduce = late(dist.all_reduce)
    dist.all_gather_single = late(dist.all_gather_single)
runpy.run_path(os.environ["RECIPE"], run_name="__main__")
