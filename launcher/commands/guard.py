"""Errors as messages on standard error and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable

from launcher.errors import InputError, LauncherError

INTERRUPTED = 130


def guarded(work: Callable[[], int]) -> int:
    """Do it, with errors turned into messages on stderr and exit codes."""
    try:
        return work()
    except LauncherError as error:
        print(_message(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("launcher: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as in `launcher plan | head`
        sys.stderr.close()
        return 0


def _message(error: LauncherError) -> str:
    problems = error.problems if isinstance(error, InputError) else (str(error),)
    if len(problems) == 1:
        return f"launcher: {problems[0]}"
    return "\n".join([f"launcher: {len(problems)} problems:", *(f"  - {problem}" for problem in problems)])
