"""Runs the user's program as `__main__`, like `python SCRIPT` and `python -m MODULE`, in a running process.

The launcher's own `__main__` is replaced by a new module that stays until the process ends: threads, exit handlers and
multiprocessing children look up the script's classes in it.
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

# Modules that exist before the script's folder is on sys.path: Python itself does not replace them.
_BUILT_IN = {"built-in", "frozen", None}
_STARTUP = {"__main__", "__mp_main__", "encodings", "site", "sitecustomize", "usercustomize"}


def execute(target: str, args: Sequence[str], *, as_module: bool = False) -> None:
    """Run a script, a folder or archive with a __main__.py, or a module, as `__main__`; exceptions propagate."""
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
    """Return the command with which torchrun would start it."""
    return [sys.executable, "-u", *(["-m"] if as_module else []), target, *args]


def from_program(traceback: TracebackType | None) -> TracebackType | None:
    """Return the traceback without our frames and runpy's; None if the program did not start (a syntax error)."""
    program = vars(sys.modules["__main__"])
    while traceback and traceback.tb_frame.f_globals is not program:
        traceback = traceback.tb_next
    return traceback


def _new_main() -> ModuleType:
    main = ModuleType("__main__")
    main.__annotations__ = {}
    vars(main)["__builtins__"] = builtins
    sys.modules["__main__"] = main
    if "__mp_main__" in sys.modules:  # multiprocessing registers it at import
        sys.modules["__mp_main__"] = main
    return main


def _code(main: ModuleType, script: str) -> CodeType:
    """Compile the script, and set its names in `main` as CPython's pyrun_file does."""
    compiled = script.endswith(".pyc")
    loader = (SourcelessFileLoader if compiled else SourceFileLoader)("__main__", script)
    vars(main).update(__file__=script, __loader__=loader, __cached__=None)
    if compiled and (code := loader.get_code("__main__")):
        return code
    return compile(Path(script).read_bytes(), script, "exec", dont_inherit=True)


def _folder(script: str) -> str:
    return str(Path(script).resolve().parent)


def _put_on_path(entry: str, *, always: bool) -> None:
    """Set the first entry of sys.path, and unload modules that hide those of the program."""
    if not sys.flags.safe_path and sys.path:
        del sys.path[0]  # the entry of this process's own command
    first = [entry] if always or not env.get("PYTHONSAFEPATH") else []
    for found in reversed([*first, *_missing_entries()]):
        sys.path.insert(0, found)
        _give_way(found)


def _missing_entries() -> list[str]:
    """What PYTHONPATH names and a new interpreter would search: it may have changed since this one started."""
    entries = [os.path.abspath(entry) for entry in (env.get("PYTHONPATH") or "").split(os.pathsep) if entry]  # noqa: PTH100
    return [entry for entry in dict.fromkeys(entries) if entry not in sys.path]


def _give_way(folder: str) -> None:
    """Unload modules of the launcher or torch if the program's folder has modules of the same name.

    Mainly for a user's launcher.py: Python would have found that one. Existing importers keep the other one.
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
