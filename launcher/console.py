"""Words to the person at the terminal: standard error, since standard output belongs to the job."""

from __future__ import annotations

import sys
from contextlib import suppress


def tell(message: str) -> None:
    """Write one message of the launcher's own, where there is somebody to read it."""
    say(line_of(message))


def line_of(message: str) -> str:
    """How a message of the launcher's own begins."""
    return f"launcher: {message}"


def say(line: str) -> None:
    """Write one line for people; a terminal that is gone, or a closed pipe, ends no job."""
    with suppress(OSError, ValueError):  # ValueError: stderr was closed
        print(line, file=sys.stderr, flush=True)
