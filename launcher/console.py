"""Words to the person at the terminal: standard error, since standard output belongs to the job."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def open_streams() -> None:
    """What a shell gives every process, where ours did not: descriptors 0 to 2, and streams that take any character.

    A file that is opened while descriptor 0 is free would become the stdin of every process that we start.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout, sys.stderr = (_writable(stream, fd) for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)))


def _writable(stream: TextIO | None, fd: int) -> TextIO:
    """The stream, replacing what its encoding lacks; Python leaves None where the descriptor was closed."""
    if stream is None:
        return open(fd, "w", encoding="utf-8", errors="replace", closefd=False)
    if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
        reconfigure(errors="replace" if fd == 1 else "backslashreplace")
    return stream


def notify(message: str) -> None:
    """Write one message of the launcher's own, where there is somebody to read it."""
    say(line_of(message))


def line_of(message: str) -> str:
    """How a message of the launcher's own begins."""
    return f"launcher: {message}"


def say(line: str) -> None:
    """Write one line for people; a terminal that is gone, or a closed pipe, ends no job."""
    with suppress(OSError, ValueError):  # ValueError: stderr was closed
        print(line, file=sys.stderr, flush=True)
