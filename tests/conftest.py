"""Tests run module by module, each module on one worker: what a module computes once serves all its tests, and those
that start ranks would starve each other side by side.

Those on the one-machine Slurm share one cluster, so they are one group.

Examples of property tests have no deadline: on a busy machine wall-clock time says nothing about the code. They are the
same each time, so that a change turns a test red and not chance; `--hypothesis-profile=search` draws new ones.

What is there once all tests are collected stays to the end: the garbage collector does not look through it.

Files that are named are run folder by folder: pytest 9.1 loses the fixtures of a folder that it comes back to.

Where a shell started the tests in the background it ignores Ctrl-C for them, which their programs would inherit.
"""

from __future__ import annotations

import gc
import signal
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("search", deadline=None)
settings.register_profile("busy machine", deadline=None, derandomize=True)
settings.load_profile("busy machine")


def pytest_configure(config: pytest.Config) -> None:
    folders = [folder_of(argument) for argument in config.args]
    config.args.sort(key=lambda argument: folders.index(folder_of(argument)))
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def folder_of(argument: str) -> Path:
    path = Path(argument.partition("::")[0]).resolve()
    return path if path.is_dir() else path.parent


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group tests for `--dist=loadgroup` by module and Slurm tests as one, unless they name their own group.

    Slow groups come first, and large ones before small ones: short modules keep every worker busy to the end.
    """
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("slurm" if item.get_closest_marker("slurm") else item.path.stem))
    if hasattr(config, "workerinput"):  # xdist starts groups in this order (--no-loadscope-reorder)
        sizes = Counter(map(group_of, items))
        items.sort(key=lambda item: (item.get_closest_marker("slow") is None, -sizes[group_of(item)]))


def group_of(item: pytest.Item) -> str:
    marker = item.get_closest_marker("xdist_group")
    assert marker is not None
    return marker.args[0] if marker.args else marker.kwargs["name"]
