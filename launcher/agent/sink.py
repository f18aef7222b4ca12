"""Where output goes: terminals and files, each written by a thread of its own, so that nobody waits for a broken one.

What cannot be written is counted and left out; the next attempt is made with the next data, so that a disk that has
room again is used again.
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

LIMIT_BYTES = 8 << 20  # waiting for a slow sink
STUCK_S = 5.0  # a sink that has taken nothing for so long is waited for no more
GONE = frozenset({errno.EIO, errno.EPIPE, errno.ENXIO, errno.EBADF, errno.ENODEV})  # a terminal that does not come back
MISSING = "=== launcher: {} bytes of output are missing here\n"


class OutputTarget(Protocol):
    """Something that takes bytes."""

    @property
    def name(self) -> str: ...

    def write(self, data: memoryview) -> int:
        """Take some; returns how many bytes. Raises OSError."""

    def close(self) -> None: ...


class TerminalTarget:
    """A descriptor that the launcher was started with; it stays open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def name(self) -> str:
        return {1: "standard output", 2: "standard error"}.get(self._fd, f"descriptor {self._fd}")

    def write(self, data: memoryview) -> int:
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:  # whoever started us made it so, for all who have it
                select.select([], [self._fd], [])

    def close(self) -> None:
        return


class LogTarget:
    """A log file, which is appended to; made again where it was removed and its folder was not."""

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
    """Targets that share a thread. `on_fault` is called once, in that thread, with the first target that fails."""

    def __init__(self, *, on_fault: Callable[[str, str], None]) -> None:
        self._on_fault = on_fault
        self._queue: deque[tuple[OutputTarget, bytes]] = deque()
        self._queued = 0
        self._writing = False
        self._progress_at = time.monotonic()
        self._missing: dict[OutputTarget, int] = {}  # since the last data that was written whole
        self._gone: set[OutputTarget] = set()
        self._faulty = self._closing = False
        self.lost_bytes = 0
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="output sink", daemon=True)
        self._thread.start()

    def put(self, target: OutputTarget, data: bytes) -> None:
        """Queue data. Waits for a slow target, for one that is stuck only once; then the oldest data is dropped."""
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
            self._report(target, f"it has taken nothing for {STUCK_S:g} s")

    def flush(self, *, timeout_s: float) -> bool:
        """Wait until everything is written, up to so long; returns whether it is."""
        deadline = time.monotonic() + timeout_s
        with self._change:
            while self._queue or self._writing:
                left = min(deadline - time.monotonic(), self._patience())
                if left <= 0:
                    return False
                self._change.wait(left)
        return True

    def close(self) -> None:
        """Write what is queued, for as long as the targets take any of it, and end the thread."""
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
        """Write what can be written; returns why some of it could not."""
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
