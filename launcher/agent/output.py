"""What ranks print, on its way to the terminal and to their logs."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import threading
import tty
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher import process


@dataclass(frozen=True)
class Stream:
    """One stream of one local rank, which writes to `write_fd`; what is read goes to the log and to `terminal_fd`."""

    local_rank: int
    read_fd: int
    write_fd: int
    terminal_fd: int
    prefixed: bool


@dataclass(frozen=True)
class Label:
    """Which rank a local rank is in the present round, and where its log is."""

    rank: int
    log: Path


def open_stream(local_rank: int, *, terminal_fd: int, prefixed: bool) -> Stream:
    """A stream as the rank would see the terminal: a terminal of its own where that is one, else a pipe."""
    if os.isatty(terminal_fd) and not prefixed:
        read_fd, write_fd = os.openpty()
        tty.setraw(write_fd)  # the real terminal turns line feeds into new lines; once is enough
        os.set_inheritable(write_fd, True)
        with suppress(OSError):  # a terminal without a size keeps none
            size = os.get_terminal_size(terminal_fd)
            _set_size(write_fd, size)
    else:
        read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    return Stream(local_rank, read_fd, write_fd, terminal_fd, prefixed)


def _set_size(fd: int, size: os.terminal_size) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, size.columns, 0, 0))


class Pump:
    """A thread that passes streams on. Start it only after the fork server: a fork wants a single-threaded process."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = {s.read_fd: s for s in streams}
        self._labels: dict[int, Label] = {}
        self._partial: dict[int, bytes] = {}
        self._wake_read, self._wake_write = os.pipe()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def label(self, labels: Mapping[int, Label]) -> None:
        """Say which ranks the local ranks are from now on; call it before they are started."""
        with self._lock:
            self._labels = dict(labels)

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
            if self._partial.get(fd):
                _write_all(stream.terminal_fd, self._prefixed(stream, b"\n"))
            os.close(fd)
            os.close(stream.write_fd)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        while True:
            ready = process.readable([self._wake_read, *self._streams], timeout_s=None)
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
        _append(self._labels[stream.local_rank].log, data)
        _write_all(stream.terminal_fd, self._prefixed(stream, data) if stream.prefixed else data)
        return True

    def _prefixed(self, stream: Stream, data: bytes) -> bytes:
        """Whole lines with their prefix; the rest waits for its end."""
        *lines, rest = (self._partial.get(stream.read_fd, b"") + data).split(b"\n")
        self._partial[stream.read_fd] = rest
        prefix = f"[rank {self._labels[stream.local_rank].rank}] ".encode()
        return b"".join(prefix + line + b"\n" for line in lines)


def rank_streams(num_ranks: int, *, console: str, first_node: bool) -> dict[int, tuple[Stream, Stream]]:
    """(stdout, stderr) by local rank, for the ranks that the terminal shows.

    console=rank0 shows rank 0 unchanged, which is on the plan's first node; console=all every rank with a prefix.
    """
    shown = range(num_ranks if console == "all" else int(first_node))
    return {
        local_rank: (
            open_stream(local_rank, terminal_fd=1, prefixed=console == "all"),
            open_stream(local_rank, terminal_fd=2, prefixed=console == "all"),
        )
        for local_rank in shown
    }


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
