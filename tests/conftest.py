"""Tests that start ranks run one at a time, on one worker: side by side they would starve each other of cores.

Examples of property tests have no deadline: on a busy machine wall-clock time says nothing about the code.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put every slow or Slurm test in one group of `--dist=loadgroup`, but for those that name their own."""
    for item in items:
        marked = item.get_closest_marker("slow") or item.get_closest_marker("slurm")
        if marked and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("ranks"))
