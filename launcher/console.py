"""Messages to the user, on standard error, since standard output belongs to the job."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def open_streams() -> None:
    """Open what a shell normally provides: descriptors 0 to 2, and streams that accept any character.

    A file opened while descriptor 0 is free would become the stdin of every child process.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout, sys.stderr = (_writable(stream, fd) for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)))


def _writable(stream: TextIO | None, fd: int) -> TextIO:
    """Return the stream, replacing characters that its encoding lacks; Python leaves None for a closed descriptor."""
    if stream is None:
        return open(fd, "w", encoding="utf-8", errors="replace", closefd=False)
    if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
        reconfigure(errors="replace" if fd == 1 else "backslashreplace")
    return stream


def notify(message: str) -> None:
    """Write one message of the launcher to stderr, if it is open."""
    say(line_of(message))


def line_of(message: str) -> str:
    """Return a message with the launcher's prefix."""
    return f"launcher: {message}"


def say(line: str) -> None:
    """Write one line to stderr; a closed terminal or pipe must not end the job."""
    with suppress(OSError, ValueError):  # ValueError: stderr was closed
        print(line, file=sys.stderr, flush=True)
