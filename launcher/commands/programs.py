"""Find and check the user's own script, module or program before any rank starts."""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path

from launcher.errors import InputError
from launcher.files import user_path
from launcher.planner.record import Program

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
ARCHIVES = (".zip", ".pyz", ".whl", ".egg")


def found_program(program: Program | None, args: Sequence[str], *, other_python: bool) -> Program | None:
    """Return the program as ranks will start it, with its arguments; None if a recipe runs.

    Raises InputError if it does not exist, or if there are arguments but no program.
    """
    if program is None:
        if args:
            raise InputError(
                f"arguments after -- go to your own program, but none is given: set script=FILE (found {list(args)})"
            )
        return None
    target = program.target
    if program.kind == "script":
        target = str(script_file(target, other_python=other_python))
    elif program.kind == "program":
        target = str(program_file(target))
    elif not other_python:
        check_module(target)
    return replace(program, target=target, args=tuple(args) or program.args)


def short_name(program: Program) -> str:
    """Return the name for its runs."""
    return program.target.rpartition(".")[2] if program.kind == "module" else Path(program.target).stem


def script_file(given: str, *, other_python: bool) -> Path:
    """Return the script, a folder with a __main__.py or an archive; raises InputError if there is none."""
    path = user_path(given).absolute()
    if path.is_dir() and (path / "__main__.py").is_file():
        return path
    if not path.is_file():
        dotted = DOTTED.fullmatch(given) and not given.endswith(".py")
        hint = f"a module is given as module={given}" if dotted else "give the path of a Python script"
        raise InputError(f"script={given} is not a file: {hint}")
    if not other_python and path.suffix not in (".pyc", *ARCHIVES):
        check_syntax(path)
    return path


def check_syntax(script: Path) -> None:
    """Raise InputError if Python cannot compile the script: before planning, not in every rank."""
    try:
        with warnings.catch_warnings(action="ignore"):  # the ranks report them
            compile(script.read_bytes(), script, "exec", dont_inherit=True)
    except SyntaxError as error:
        where = f"{script}, line {error.lineno}" if error.lineno else str(script)
        line = f": {error.text.strip()}" if error.text else ""
        version = sys.version.partition(" ")[0]
        hint = "" if script.suffix == ".py" else f"; a program of another kind is given as program={script}"
        raise InputError(f"{where}: {error.msg}{line} (Python {version} cannot run it{hint})") from error
    except (ValueError, OSError) as error:
        raise InputError(
            f"{script} is not a Python script: {error}; a program of another kind is given as program={script}"
        ) from error


def check_module(name: str) -> None:
    """Raise InputError if the module is not found from here, without importing its packages."""
    path: Sequence[str] | None = [str(Path.cwd()), *sys.path]
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        found = PathFinder.find_spec(".".join(parts[:end]), path) if path is not None else None
        if found is None:
            missing = ".".join(parts[:end])
            file = " (a file is given as script=)" if name.endswith(".py") else ""
            raise InputError(
                f"module={name}: there is no module {missing} in {Path.cwd()} or in {sys.executable}{file}"
            )
        path = found.submodule_search_locations


def program_file(given: str) -> Path:
    """Return the program by its path or its name in PATH; raises InputError if it cannot be executed."""
    path = user_path(given)
    found = shutil.which(str(path.absolute()) if "/" in given else given)
    if found is None:
        why = f"is not executable: chmod +x {given}" if path.is_file() else "is not found: give its path"
        raise InputError(f"program={given} {why}")
    return Path(found).absolute()
