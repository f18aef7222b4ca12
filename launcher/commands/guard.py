"""Errors as messages on standard error and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from launcher.console import notify, say
from launcher.errors import InputError, LauncherError

INTERRUPTED = 130
CLOSED_PIPE = 141  # as of a process that SIGPIPE ends


def guarded(work: Callable[[], int]) -> int:
    """Do it, with errors turned into messages on stderr and exit codes."""
    try:
        code = work()
        if sys.stdout:  # None where the user closed it
            sys.stdout.flush()
        return code
    except LauncherError as error:
        say(_message(error))
        return error.exit_code
    except KeyboardInterrupt:
        notify("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as in `launcher plan | head`
        with Path(os.devnull).open("wb") as nothing:  # what is buffered goes there, without another error
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        return CLOSED_PIPE
    except OSError as error:  # a disk, a terminal or a folder that no reader and writer of ours has named
        notify(f"{error.strerror or error}: {error.filename or 'standard output, or the disk of the run'}")
        return LauncherError.exit_code


def _message(error: LauncherError) -> str:
    problems = error.problems if isinstance(error, InputError) else (str(error),)
    if len(problems) == 1:
        return f"launcher: {problems[0]}"
    return "\n".join([f"launcher: {len(problems)} problems:", *(f"  - {problem}" for problem in problems)])
