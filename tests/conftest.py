"""Tests that start ranks run module by module, each module on one worker: side by side they would starve each other.

Those on the one-machine Slurm share one cluster, so they are one group.

Examples of property tests have no deadline: on a busy machine wall-clock time says nothing about the code. They are the
same each time, so that a change turns a test red and not chance; `--hypothesis-profile=search` draws new ones.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("search", deadline=None)
settings.register_profile("busy machine", deadline=None, derandomize=True)
settings.load_profile("busy machine")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group slow tests for `--dist=loadgroup` by module and Slurm tests as one, unless they name their own group.

    Short tests come last: they keep every worker busy to the end.
    """
    for item in items:
        slow, on_slurm = item.get_closest_marker("slow"), item.get_closest_marker("slurm")
        if (slow or on_slurm) and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("slurm" if on_slurm else item.path.stem))
    if hasattr(config, "workerinput"):  # xdist starts groups by their number of tests, and then in this order
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)
