"""Turn errors into messages on standard error and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from launcher.console import notify, say
from launcher.errors import InputError, LauncherError

INTERRUPTED = 130
CLOSED_PIPE = 141  # the status of a process that SIGPIPE killed


def guarded(work: Callable[[], int]) -> int:
    """Call `work`; turn its errors into messages on stderr and exit codes."""
    try:
        code = work()
        if sys.stdout:  # None if the user closed it
            sys.stdout.flush()
        return code
    except LauncherError as error:
        say(_message(error))
        return error.exit_code
    except KeyboardInterrupt:
        notify("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as in `launcher plan | head`
        with Path(os.devnull).open("wb") as nothing:  # buffered output is flushed there, without another error
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        return CLOSED_PIPE
    except OSError as error:  # from a disk, terminal or folder that none of our own checks reported
        notify(f"{error.strerror or error}: {error.filename or 'standard output, or the disk of the run'}")
        return LauncherError.exit_code


def _message(error: LauncherError) -> str:
    problems = error.problems if isinstance(error, InputError) else (str(error),)
    if len(problems) == 1:
        return f"launcher: {problems[0]}"
    return "\n".join([f"launcher: {len(problems)} problems:", *(f"  - {problem}" for problem in problems)])
