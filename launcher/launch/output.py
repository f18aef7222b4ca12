"""What ranks print, on its way to the terminal and to their logs."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import threading
import tty
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stream:
    """One stream of one rank: the rank writes to `write_fd`; what is read goes to the log and to `terminal_fd`."""

    read_fd: int
    write_fd: int
    terminal_fd: int
    log: Path
    prefix: bytes = b""


def open_stream(log: Path, *, terminal_fd: int, prefix: str = "") -> Stream:
    """A stream as the rank would see the terminal: a terminal of its own where that is one, else a pipe."""
    if os.isatty(terminal_fd) and not prefix:
        read_fd, write_fd = os.openpty()
        tty.setraw(write_fd)  # the real terminal turns line feeds into new lines; once is enough
        os.set_inheritable(write_fd, True)
        with suppress(OSError):  # a terminal without a size keeps none
            size = os.get_terminal_size(terminal_fd)
            _set_size(write_fd, size)
    else:
        read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    return Stream(read_fd, write_fd, terminal_fd, log, prefix.encode())


def _set_size(fd: int, size: os.terminal_size) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, size.columns, 0, 0))


class Pump:
    """A thread that passes streams on. Start it only after the fork server: a fork wants a single-threaded process."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = {s.read_fd: s for s in streams}
        self._partial: dict[int, bytes] = {}
        self._wake_read, self._wake_write = os.pipe()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drain(self) -> None:
        """Pass on everything that was written until now."""
        with self._lock:
            for fd in self._streams:
                while self._pass_on(fd):
                    pass

    def close(self) -> None:
        """Drain, and end the thread."""
        os.write(self._wake_write, b"x")
        self._thread.join()
        self.drain()
        for fd, stream in self._streams.items():
            if rest := self._partial.pop(fd, b""):
                _write_all(stream.terminal_fd, stream.prefix + rest + b"\n")
            os.close(fd)
            os.close(stream.write_fd)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._wake_read, *self._streams], [], [])
            if self._wake_read in ready:
                return
            with self._lock:
                for fd in ready:
                    self._pass_on(fd)

    def _pass_on(self, fd: int) -> bool:
        """Move what is there; returns whether anything was."""
        stream = self._streams[fd]
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return False
        if not data:
            return False
        _append(stream.log, data)
        _write_all(stream.terminal_fd, self._prefixed(stream, data) if stream.prefix else data)
        return True

    def _prefixed(self, stream: Stream, data: bytes) -> bytes:
        """Whole lines with their prefix; the rest waits for its end."""
        *lines, rest = (self._partial.get(stream.read_fd, b"") + data).split(b"\n")
        self._partial[stream.read_fd] = rest
        return b"".join(stream.prefix + line + b"\n" for line in lines)


def rank_streams(ranks: Sequence[tuple[int, Path]], *, console: str) -> dict[int, tuple[Stream, Stream]]:
    """(stdout, stderr) streams by local rank, for the ranks that the terminal shows.

    `ranks` gives (global rank, log) by local rank; console=rank0 shows global rank 0 unchanged, console=all every
    rank with a prefix.
    """
    shown = {}
    for local_rank, (rank, log) in enumerate(ranks):
        if console == "all":
            prefix = f"[rank {rank}] "
            shown[local_rank] = (
                open_stream(log, terminal_fd=1, prefix=prefix),
                open_stream(log, terminal_fd=2, prefix=prefix),
            )
        elif rank == 0:
            shown[local_rank] = (open_stream(log, terminal_fd=1), open_stream(log, terminal_fd=2))
    return shown


def _append(log: Path, data: bytes) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _write_all(fd, data)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except BrokenPipeError:  # the reader of the terminal stream went away; the log still has it all
            return
