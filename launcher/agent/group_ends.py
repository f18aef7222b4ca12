"""The end of a process group in a rank: it waits until gloo's threads are done, as torch's own does not.

DistributedDataParallel holds its group longer than destroy_process_group does. Freed after it, as at the end of a
script's `main()`, it joins gloo's threads with the GIL in its hands, and the one that ran the last collective waits for
the GIL to release the Python context of the backward pass (torch 2.13, by the stacks of both threads; the kind is
https://github.com/pytorch/pytorch/issues/56297). Such a script hung in 1 of 57 starts, three at a time on two cores.
The script of tests/worker/test_group_ends.py does not end under plain Python either (3 of 3, in 40 s).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from launcher.fast_exit import wait_for_native_threads

DEFINED_IN = "torch.distributed.distributed_c10d"
FUNCTION = "destroy_process_group"


def wait_for_threads_of_groups() -> None:
    """Let torch's destroy_process_group wait in this process, now or as soon as the program imports it."""
    if DEFINED_IN in sys.modules:
        _replace(sys.modules[DEFINED_IN])
    else:
        sys.meta_path.insert(0, _AtImport())


def _replace(module: ModuleType) -> None:
    """Replace the function in its own module and wherever it has been imported by name."""
    destroy = getattr(module, FUNCTION)

    @functools.wraps(destroy)
    def destroy_and_wait(*args: Any, **kwargs: Any) -> None:
        destroy(*args, **kwargs)
        wait_for_native_threads()

    for other in list(sys.modules.values()):
        if getattr(other, "__dict__", {}).get(FUNCTION) is destroy:
            setattr(other, FUNCTION, destroy_and_wait)
    setattr(module, FUNCTION, destroy_and_wait)


class _AtImport(MetaPathFinder):
    """Replaces the function at the end of its module's import."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != DEFINED_IN:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_replace(module: ModuleType) -> None:
            execute(module)
            _replace(module)

        spec.loader.exec_module = execute_and_replace  # type: ignore[method-assign]  # this module's own loader
        return spec
