"""Messages to the user, on standard error, since standard output belongs to the job."""

from __future__ import annotations

import os
import re
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO, TypeVar

from launcher import env
from launcher.text import shown

T = TypeVar("T")
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
PATIENCE_S = 1.0  # before progress is shown


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


def flush_streams() -> None:
    """Flush standard output and error; what a reader that has gone did not take is lost, and the job goes on."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):  # ValueError: it was closed
                stream.flush()


def _writable(stream: TextIO | None, fd: int) -> TextIO:
    """Return the stream, replacing characters that its encoding lacks; Python leaves None for a closed descriptor."""
    if stream is None:
        return open(fd, "w", encoding="utf-8", errors="replace", closefd=False)
    if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
        reconfigure(errors="replace" if fd == 1 else "backslashreplace")
    return stream


def terminal_width(stream: TextIO) -> int | None:
    """Return the columns of the terminal behind a stream; None if there is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None if stream.isatty() else None
    except (OSError, ValueError):
        return None


def has_colour(stream: TextIO) -> bool:
    """Return whether a stream shows colours and bold text, and its user wants them (https://no-color.org)."""
    return stream.isatty() and env.get("NO_COLOR") is None and env.get("TERM", "dumb") != "dumb"


def fitted(lines: Iterable[str], width: int | None) -> list[str]:
    """Return the lines with those that are wider than a terminal in several, between words, indented as they begin."""
    if width is None:
        return list(lines)
    return [part for line in lines for part in (_wrapped(line, width) if _shown_width(line) > width else [line])]


def _shown_width(line: str) -> int:
    """Return the columns that a line takes: what makes it bold takes none."""
    return len(ESCAPE.sub("", line))


def _wrapped(line: str, width: int) -> list[str]:
    text = line.lstrip(" ")
    indent = " " * (len(line) - len(text))
    further = indent + ("  " if text.startswith(("- ", "→ ")) else "    ")
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )


def show(*lines: str, to: TextIO | None = None) -> None:
    """Print lines for people on standard output, or `to` another stream; on a terminal no word is cut."""
    stream = to or sys.stdout
    every = [part for line in lines for part in line.split("\n")]
    text = "\n".join(fitted(every, terminal_width(stream)))
    print(
        f"{text}\n", end="", file=stream, flush=stream is sys.stderr
    )  # one write: another stream may share the terminal


def counted(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield the items; after a second, show on a terminal how many are done."""
    begin, shown = time.monotonic(), False
    for done, item in enumerate(items):
        if terminal_width(sys.stderr) is not None and time.monotonic() - begin > PATIENCE_S:
            shown = True
            print(f"\r{what}: {done} of {len(items)}", end="", file=sys.stderr, flush=True)
        yield item
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal what the block does while it takes longer than a second, and remove it at the end."""
    if terminal_width(sys.stderr) is None:
        yield
        return
    over = threading.Event()
    watch = threading.Thread(target=_show_waiting, args=(what, over, sys.stderr), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _show_waiting(what: str, over: threading.Event, stream: TextIO) -> None:
    begin, shown = time.monotonic(), False
    while not over.wait(PATIENCE_S):
        shown = True
        print(f"\r{what}: {time.monotonic() - begin:.0f} s", end="", file=stream, flush=True)
    if shown:
        print("\r\x1b[K", end="", file=stream, flush=True)


def notify(message: str) -> None:
    """Write one message of the launcher to stderr, if it is open."""
    say(line_of(message))


def line_of(message: str) -> str:
    """Return a message with the launcher's prefix."""
    return f"launcher: {message}"


def say(line: str) -> None:
    """Write one line to stderr; a closed terminal or pipe must not end the job."""
    with suppress(OSError, ValueError):  # ValueError: stderr was closed
        width = terminal_width(sys.stderr)
        lines = [shown(part) for part in line.split("\n")]  # some words of it are the user's, or a file's
        print("\n".join(fitted(lines, width)), file=sys.stderr, flush=True)
