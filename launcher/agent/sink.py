"""Output targets: terminals and files, each written by its own thread, so that a broken one blocks nothing else.

Data that cannot be written is counted and dropped; the next data is tried again, so a disk with new space is used
again.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

LIMIT_BYTES = 8 << 20  # queued for a slow target
STUCK_S = 5.0  # do not wait longer for a target that accepts nothing
GONE = frozenset({errno.EIO, errno.EPIPE, errno.ENXIO, errno.EBADF, errno.ENODEV})  # the terminal is gone for good
MISSING = "=== launcher: {} bytes of output are missing here\n"


class OutputTarget(Protocol):
    """A destination for bytes."""

    @property
    def name(self) -> str: ...

    def write(self, data: memoryview) -> int:
        """Write some bytes; return how many. Raises OSError."""

    def close(self) -> None: ...


class TerminalTarget:
    """A descriptor that the launcher inherited; it stays open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def name(self) -> str:
        return {1: "standard output", 2: "standard error"}.get(self._fd, f"descriptor {self._fd}")

    def write(self, data: memoryview) -> int:
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:  # the parent made it non-blocking, for all who share it
                select.select([], [self._fd], [])

    def close(self) -> None:
        return


class LogTarget:
    """A log file in append mode; recreated if it was removed but its folder was not."""

    def __init__(self, path: Path) -> None:
        self._path, self._fd = path, -1

    @property
    def name(self) -> str:
        return str(self._path)

    def write(self, data: memoryview) -> int:
        if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
            self.close()
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        return os.write(self._fd, data)

    def close(self) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                os.close(self._fd)
        self._fd = -1


class OutputSink:
    """Targets that share a thread. `on_fault` is called once, in that thread, for the first target that fails."""

    def __init__(self, *, on_fault: Callable[[str, str], None]) -> None:
        self._on_fault = on_fault
        self._queue: deque[tuple[OutputTarget, bytes]] = deque()
        self._queued = 0
        self._writing = False
        self._progress_at = time.monotonic()
        self._missing: dict[OutputTarget, int] = {}  # since the last complete write
        self._gone: set[OutputTarget] = set()
        self._faulty = self._closing = False
        self.lost_bytes = 0
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="output sink", daemon=True)
        self._thread.start()

    def put(self, target: OutputTarget, data: bytes) -> None:
        """Queue data. Waits for a slow target, but only once for a stuck one; then drops the oldest data."""
        if not data:
            return
        with self._change:
            if not self._queue and not self._writing:
                self._progress_at = time.monotonic()
            self._queue.append((target, data))
            self._queued += len(data)
            self._change.notify_all()
            while self._queued > LIMIT_BYTES and (left := self._patience()) > 0:
                self._change.wait(left)
            stuck = self._queued > LIMIT_BYTES
            while self._queued > LIMIT_BYTES:
                self._lose(*self._take())
        if stuck:
            self._report(target, f"it has accepted nothing for {STUCK_S:g} s")

    def flush(self, *, timeout_s: float) -> bool:
        """Wait up to `timeout_s` until everything is written; return whether it is."""
        deadline = time.monotonic() + timeout_s
        with self._change:
            while self._queue or self._writing:
                left = min(deadline - time.monotonic(), self._patience())
                if left <= 0:
                    return False
                self._change.wait(left)
        return True

    def close(self) -> None:
        """Write queued data as long as the targets accept any, and end the thread."""
        self._progress_at = time.monotonic()  # one more chance
        while not self.flush(timeout_s=STUCK_S) and self._patience() > 0:
            continue
        with self._change:
            while self._queue:
                self._lose(*self._take())
            self._closing = True
            self._change.notify_all()
        self._thread.join(STUCK_S)

    def _patience(self) -> float:
        return self._progress_at + STUCK_S - time.monotonic()

    def _take(self) -> tuple[OutputTarget, bytes]:
        target, data = self._queue.popleft()
        self._queued -= len(data)
        return target, data

    def _lose(self, target: OutputTarget, data: bytes | memoryview) -> None:
        self.lost_bytes += len(data)
        self._missing[target] = self._missing.get(target, 0) + len(data)

    def _run(self) -> None:
        targets: set[OutputTarget] = set()
        while True:
            with self._change:
                while not self._queue and not self._closing:
                    self._change.wait()
                if not self._queue:
                    break
                target, data = self._take()
                self._writing = True
            targets.add(target)
            fault = self._write(target, data)
            with self._change:
                self._writing = False
                self._progress_at = time.monotonic()
                self._change.notify_all()
            if fault:
                self._report(target, fault)
        for target in targets:
            target.close()

    def _write(self, target: OutputTarget, data: bytes) -> str | None:
        """Write what is possible; return the fault, if any."""
        mark = MISSING.format(self._missing[target]).encode() if self._missing.get(target) else b""
        view = memoryview(mark + data)
        left_of_mark = len(mark)
        try:
            while view and target not in self._gone:
                taken = target.write(view)
                view, left_of_mark = view[taken:], max(0, left_of_mark - taken)
                self._progress_at = time.monotonic()
                if mark and not left_of_mark:
                    mark = self._forget_missing(target)
        except OSError as error:
            if error.errno in GONE:
                self._gone.add(target)
            fault = error.strerror or str(error)
        else:
            fault = "it is gone"
        if not view:
            return None
        with self._change:
            self._lose(target, view[left_of_mark:])
        return fault

    def _forget_missing(self, target: OutputTarget) -> bytes:
        with self._change:
            self._missing.pop(target, None)
        return b""

    def _report(self, target: OutputTarget, why: str) -> None:
        with self._change:
            first, self._faulty = not self._faulty, True
        if first:
            self._on_fault(target.name, why)
