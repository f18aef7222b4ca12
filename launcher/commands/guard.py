"""Turn errors into messages on standard error and exit codes, with output=json also into a document."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.console import notify, say
from launcher.errors import InputError, JobFailed, LauncherError, NoLayoutFits

INTERRUPTED = 130
CLOSED_PIPE = 141  # the status of a process that SIGPIPE killed
KINDS = {InputError: "input", NoLayoutFits: "no_layout_fits", JobFailed: "job_failed"}


def wants_json(words: Sequence[str]) -> bool:
    """Whether a command line asks for documents on standard output; what comes after -- is not the launcher's."""
    own = words[: list(words).index("--")] if "--" in words else words
    return [word for word in own if word.startswith("output=")][-1:] == ["output=json"]


def guarded(work: Callable[[], int], *, as_json: bool = False) -> int:
    """Call `work`; turn its errors into messages on stderr and exit codes; `as_json`: also into a document."""
    try:
        code = work()
        if sys.stdout:  # None where the user closed it
            sys.stdout.flush()
        return code
    except LauncherError as error:
        say(_message(error))
        kind = next((kind for cls, kind in KINDS.items() if isinstance(error, cls)), "launcher")
        return _ended(kind, _problems(error), error.exit_code, as_json=as_json)
    except KeyboardInterrupt:
        notify("interrupted")
        return _ended("interrupted", ["interrupted"], INTERRUPTED, as_json=as_json)
    except BrokenPipeError:  # the reader of our output went away, as in `launcher plan | head`
        with Path(os.devnull).open("wb") as nothing:  # what is buffered goes there, without another error
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        return CLOSED_PIPE
    except OSError as error:  # a disk, a terminal or a folder that no reader and writer of ours has named
        message = f"{error.strerror or error}: {error.filename or _unnamed(error)}"
        notify(message)
        return _ended("system", [message], LauncherError.exit_code, as_json=as_json)


def _unnamed(error: OSError) -> str:
    """What an error may be about that names no file."""
    if isinstance(error, FileNotFoundError) and not _has_working_folder():
        return "the folder that this command was started in has been removed: change to one that is there"
    return "standard output, or the disk of the run"


def _has_working_folder() -> bool:
    try:
        return bool(os.getcwd())  # noqa: PTH109 (which Path.cwd calls, too)
    except FileNotFoundError:
        return False


def _ended(kind: str, problems: Sequence[str], code: int, *, as_json: bool) -> int:
    """The exit code, after the document of the error where one is wanted."""
    if as_json:
        try:
            print(error_document(kind, problems, code), flush=True)
        except OSError:
            return code  # nobody reads it; standard error has the message
    return code


def error_document(kind: str, problems: Sequence[str], code: int) -> str:
    """What is printed in place of a command's document: its schema is ERROR of commands/schemas.py."""
    return json.dumps({"error": {"kind": kind, "problems": list(problems), "exit_code": code}})


def _problems(error: LauncherError) -> Sequence[str]:
    return error.problems if isinstance(error, InputError) else (str(error),)


def _message(error: LauncherError) -> str:
    problems = _problems(error)
    if len(problems) == 1:
        return f"launcher: {problems[0]}"
    return "\n".join([f"launcher: {len(problems)} problems:", *(f"  - {problem}" for problem in problems)])
