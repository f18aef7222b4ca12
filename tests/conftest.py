"""Tests that start ranks run one at a time, on one worker: side by side they would starve each other of cores.

Those on the one-machine Slurm mostly wait for Slurm, so they are a second group of their own.

Examples of property tests have no deadline: on a busy machine wall-clock time says nothing about the code.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow tests in one group of `--dist=loadgroup` and Slurm tests in another, unless they name their own."""
    for item in items:
        group = "slurm" if item.get_closest_marker("slurm") else "ranks" if item.get_closest_marker("slow") else None
        if group and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(group))
