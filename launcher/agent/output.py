"""Forwards the output of ranks to the terminal and to their logs.

Every rank writes into pipes (rank 0 into its own pseudo-terminal if the command has a terminal). A thread empties them
even if terminal or logs fail: a rank that cannot write would block, and all others would wait for it.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from launcher import process
from launcher.agent.plain_text import PlainLines
from launcher.agent.sink import LogTarget, OutputSink, TerminalTarget
from launcher.console import line_of

LOG_HEADER = "=== launcher: "  # prefix of the launcher's own lines in a rank's log
READ_BYTES = TAIL_BYTES = 65536
UNFINISHED_S = 1.0  # log an unfinished line after this time
DRAIN_S = 2.0  # maximum wait of `drain` for terminal and logs
STDOUT, STDERR = 1, 2


@dataclass(frozen=True)
class Stream:
    """One stream of one local rank, which writes to `write_fd`; goes to its log and possibly to a terminal."""

    local_rank: int
    read_fd: int
    write_fd: int
    terminal_fd: int | None = None
    prefixed: bool = False


@dataclass(frozen=True)
class Label:
    """The global rank of a local rank in this round, its log file, and the log line that marks this start."""

    rank: int
    log: Path
    header: str = ""


def open_stream(local_rank: int, *, terminal_fd: int | None, prefixed: bool) -> Stream:
    """Open a stream for a rank: a pseudo-terminal if the launcher writes to a terminal, else a pipe."""
    if terminal_fd is not None and not prefixed and _is_terminal(terminal_fd):
        read_fd, write_fd = os.openpty()
        tty.setraw(write_fd)  # the real terminal already translates line feeds
        os.set_inheritable(write_fd, True)
        with suppress(OSError):  # the terminal has no size
            _set_size(write_fd, os.get_terminal_size(terminal_fd))
    else:
        read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    return Stream(local_rank, read_fd, write_fd, terminal_fd, prefixed)


def rank_streams(num_ranks: int, *, console: str, first_node: bool) -> dict[int, tuple[Stream, Stream]]:
    """Open (stdout, stderr) by local rank; a single stream for both, in order, if the terminal does not show them.

    console=rank0 shows rank 0 (on the plan's first node) unchanged; console=all shows every rank with a prefix.
    """
    everyone = console == "all"
    found = {}
    for local_rank in range(num_ranks):
        if everyone or (first_node and local_rank == 0):
            found[local_rank] = (
                open_stream(local_rank, terminal_fd=STDOUT, prefixed=everyone),
                open_stream(local_rank, terminal_fd=STDERR, prefixed=everyone),
            )
        else:
            both = open_stream(local_rank, terminal_fd=None, prefixed=False)
            found[local_rank] = (both, both)
    return found


def may_read_stdin() -> bool:
    """Return whether this process may read standard input: not from a terminal while in the background."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # no terminal, or not this session's
        return True


@dataclass
class _Passage:
    """The state of one stream."""

    stream: Stream
    lines: PlainLines = field(default_factory=PlainLines)
    unfinished_since: float | None = None


@dataclass
class _Tail:
    """The last output of one rank since its start, without control sequences."""

    at: float = 0.0
    num_bytes: int = 0
    _chunks: deque[bytes] = field(default_factory=deque)
    _kept: int = 0

    def note(self, num_bytes: int, *, now: float) -> None:
        self.at = now
        self.num_bytes += num_bytes

    def keep(self, data: bytes) -> None:
        self._chunks.append(data[-TAIL_BYTES:])
        self._kept += len(self._chunks[-1])
        while self._kept - len(self._chunks[0]) >= TAIL_BYTES:
            self._kept -= len(self._chunks.popleft())

    def text(self) -> str:
        return b"".join(self._chunks).decode(errors="replace")


class Pump:
    """A thread that forwards streams. Create it after the fork server: a fork needs a single-threaded process."""

    def __init__(self, streams: Iterable[Stream]) -> None:
        self._passages = {s.read_fd: _Passage(s) for s in streams}
        self._labels: dict[int, Label] = {}
        self._logs: dict[Path, LogTarget] = {}
        self._terminals = {fd: TerminalTarget(fd) for fd in (STDOUT, STDERR)}
        self._log_sink = OutputSink(on_fault=self._note_log_fault)
        sink = OutputSink(on_fault=self._note_terminal_fault)
        self._terminal_sinks = {STDOUT: sink, STDERR: sink}
        if not _same_file(STDOUT, STDERR):  # a paused reader of standard output must not delay messages to the user
            self._terminal_sinks[STDOUT] = OutputSink(on_fault=self._note_stdout_fault)
        self._terminal_is_gone = False
        self._tails: dict[int, _Tail] = {}
        self._wake_read, self._wake_write = os.pipe()
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)

    def printed_at(self, local_rank: int) -> float:
        """Return when a rank last printed something (CLOCK_MONOTONIC); 0 if it has not since its start."""
        return self._tails[local_rank].at

    def printed_bytes(self, local_rank: int) -> int:
        """Return how many bytes a rank has printed since its start."""
        return self._tails[local_rank].num_bytes

    def last_lines(self, local_rank: int, *, num_lines: int) -> list[str]:
        """Return the last lines of a rank since its start, from memory: its log may be on a full disk."""
        with self._lock:
            return self._tails[local_rank].text().splitlines()[-num_lines:]

    def note(self, local_rank: int, text: str) -> None:
        """Write the launcher's own lines into a rank's log."""
        with self._lock:
            self._log_sink.put(self._log(self._labels[local_rank].log), f"{LOG_HEADER}{text}\n".encode())

    def start(self) -> None:
        self._thread.start()

    def label(self, labels: Mapping[int, Label]) -> None:
        """Set the global ranks of the local ranks; call it before they are started."""
        with self._lock:
            for passage in self._passages.values():
                self._finish_line(passage)
            self._labels = dict(labels)
            self._tails = {local_rank: _Tail() for local_rank in labels}
            for local_rank, label in labels.items():
                if label.header:
                    self.note(local_rank, label.header)

    def notify(self, message: str) -> None:
        """Print a message of the launcher after the ranks' output: to the terminal, or to a log if that is gone."""
        text = line_of(message)
        if not self._terminal_is_gone:
            self._terminal_sinks[STDERR].put(self._terminals[STDERR], f"{text}\n".encode())
            return
        for label in list(self._labels.values())[:1]:
            self._log_sink.put(self._log(label.log), f"{LOG_HEADER}{text}\n".encode())

    def drain(self) -> None:
        """Forward everything written so far, and wait briefly until it has arrived."""
        with self._lock:
            for fd, passage in self._passages.items():
                while self._pass_on(fd):
                    pass
                self._finish_line(passage)
        for sink in self._sinks():
            sink.flush(timeout_s=DRAIN_S)

    def close(self) -> None:
        """Drain and end the threads; report how much output was lost, if any."""
        os.write(self._wake_write, b"x")
        self._thread.join()
        self.drain()
        if lost := self._log_sink.lost_bytes:
            self.notify(f"{lost} bytes of output are missing in the logs")
        for sink in self._sinks():
            sink.close()
        for fd, passage in self._passages.items():
            os.close(fd)
            os.close(passage.stream.write_fd)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _sinks(self) -> set[OutputSink]:
        return {self._log_sink, *self._terminal_sinks.values()}

    def _run(self) -> None:
        while True:
            waits = any(passage.unfinished_since is not None for passage in self._passages.values())
            ready = process.readable([self._wake_read, *self._passages], timeout_s=UNFINISHED_S if waits else None)
            if self._wake_read in ready:
                return
            with self._lock:
                for fd in ready:
                    self._pass_on(fd)
                self._put_unfinished_lines()

    def _pass_on(self, fd: int) -> bool:
        """Move available data; return whether there was any."""
        passage = self._passages[fd]
        stream = passage.stream
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            return False
        now = time.monotonic()
        lines = passage.lines.feed(data, now=now)
        self._tails[stream.local_rank].note(len(data), now=now)
        self._put_log(passage, lines)
        self._put_terminal(stream, self._prefix(stream, lines) if stream.prefixed else data)
        passage.unfinished_since = (passage.unfinished_since or now) if passage.lines.unfinished else None
        return True

    def _put_unfinished_lines(self) -> None:
        for passage in self._passages.values():
            since = passage.unfinished_since
            if since is not None and time.monotonic() > since + UNFINISHED_S and not passage.stream.prefixed:
                passage.unfinished_since = None
                self._put_log(passage, passage.lines.rest())

    def _finish_line(self, passage: _Passage) -> None:
        """End an unfinished line: its process will write nothing more."""
        if rest := passage.lines.rest():
            line = rest.removesuffix(b"\n") + b"\n"
            self._put_log(passage, line)
            if passage.stream.prefixed:
                self._put_terminal(passage.stream, self._prefix(passage.stream, line))
        passage.unfinished_since = None

    def _put_log(self, passage: _Passage, data: bytes) -> None:
        local_rank = passage.stream.local_rank
        if data and (label := self._labels.get(local_rank)):
            self._tails[local_rank].keep(data)
            self._log_sink.put(self._log(label.log), data)

    def _put_terminal(self, stream: Stream, data: bytes) -> None:
        if stream.terminal_fd is not None:
            self._terminal_sinks[stream.terminal_fd].put(self._terminals[stream.terminal_fd], data)

    def _prefix(self, stream: Stream, lines: bytes) -> bytes:
        prefix = f"[rank {self._labels[stream.local_rank].rank}] ".encode()
        return b"".join(prefix + line for line in lines.splitlines(keepends=True))

    def _log(self, path: Path) -> LogTarget:
        return self._logs.setdefault(path, LogTarget(path))

    def _note_log_fault(self, name: str, why: str) -> None:
        self.notify(f"{name} cannot be written ({why}): the job goes on, and writes there again when it can")

    def _note_stdout_fault(self, name: str, why: str) -> None:
        self.notify(f"{name} cannot be written ({why}): the job goes on; its output is in the logs")

    def _note_terminal_fault(self, name: str, why: str) -> None:
        self._terminal_is_gone = True
        self._note_stdout_fault(name, why)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _same_file(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False


def _set_size(fd: int, size: os.terminal_size) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, size.columns, 0, 0))
