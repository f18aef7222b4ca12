"""The user's program as `__main__`, as `python SCRIPT` and `python -m MODULE` make it, in a process that has begun.

The process has a `__main__` of the launcher's own. It is replaced by one new module, which stays until the process
ends: threads, exit handlers and children of multiprocessing look the script's classes up in it.
"""

from __future__ import annotations

import builtins
import os
import pkgutil
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from launcher import env

# Modules that are there before the folder of the script is on sys.path: Python itself takes no other under their names.
_BUILT_IN = {"built-in", "frozen", None}
_STARTUP = {"__main__", "__mp_main__", "encodings", "site", "sitecustomize", "usercustomize"}


def execute(target: str, args: Sequence[str], *, as_module: bool = False) -> None:
    """Run a script, a folder or archive with a __main__.py, or a module, as `__main__`; its exceptions come through."""
    main = _new_main()
    holder = not as_module and pkgutil.get_importer(target) is not None
    sys.argv = ["-m" if as_module else target, *args]
    sys.orig_argv = command_line(target, args, as_module=as_module)
    _put_on_path(target if holder else str(Path.cwd()) if as_module else _folder(target), always=holder)
    if as_module or holder:  # the function that `python -m` and `python FOLDER` call: CPython, Modules/main.c
        runpy._run_module_as_main(target if as_module else "__main__", alter_argv=as_module)  # type: ignore[attr-defined]
    else:
        exec(_code(main, target), vars(main))


def command_line(target: str, args: Sequence[str], *, as_module: bool = False) -> list[str]:
    """How torchrun would start it."""
    return [sys.executable, "-u", *(["-m"] if as_module else []), target, *args]


def from_program(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback without our own frames and runpy's; None where the program did not begin (a syntax error)."""
    program = vars(sys.modules["__main__"])
    while traceback and traceback.tb_frame.f_globals is not program:
        traceback = traceback.tb_next
    return traceback


def _new_main() -> ModuleType:
    main = ModuleType("__main__")
    main.__annotations__ = {}
    vars(main)["__builtins__"] = builtins
    sys.modules["__main__"] = main
    if "__mp_main__" in sys.modules:  # what multiprocessing makes of it when it is imported
        sys.modules["__mp_main__"] = main
    return main


def _code(main: ModuleType, script: str) -> CodeType:
    """The compiled script, and its names in `main` as CPython's pyrun_file sets them."""
    compiled = script.endswith(".pyc")
    loader = (SourcelessFileLoader if compiled else SourceFileLoader)("__main__", script)
    vars(main).update(__file__=script, __loader__=loader, __cached__=None)
    if compiled and (code := loader.get_code("__main__")):
        return code
    return compile(Path(script).read_bytes(), script, "exec", dont_inherit=True)


def _folder(script: str) -> str:
    return str(Path(script).resolve().parent)


def _put_on_path(entry: str, *, always: bool) -> None:
    """sys.path as it would begin for this program, and its modules found where another of that name is loaded."""
    if not sys.flags.safe_path and sys.path:
        del sys.path[0]  # the entry of the command that this process is
    if always or not env.get("PYTHONSAFEPATH"):
        sys.path.insert(0, entry)
        _give_way(entry)


def _give_way(folder: str) -> None:
    """Forget modules that were imported for the launcher or torch where the program's folder has others of that name.

    A launcher.py of the user's, first of all. Python would have found the user's; who imported the other one keeps it.
    """
    loaded = {name for name in sys.modules if "." not in name} - _STARTUP
    for name in loaded & {entry.partition(".")[0] for entry in _entries(folder)}:
        spec = getattr(sys.modules[name], "__spec__", None)
        origin = spec.origin if isinstance(spec, ModuleSpec) else None
        found = PathFinder.find_spec(name, [folder])
        if origin in _BUILT_IN or found is None or found.origin is None or _same(found.origin, str(origin)):
            continue
        for other in [n for n in sys.modules if n == name or n.startswith(f"{name}.")]:
            del sys.modules[other]


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 (a Path for each of what may be many data files)
    except OSError:
        return []


def _same(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False
