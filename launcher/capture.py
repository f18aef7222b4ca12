"""Run a command and capture its output, with limits of size and time."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import IO

MOST_BYTES = 64 * 2**20
READ_ON_S = 2.0  # do not wait longer for a grandchild that keeps the output open


@dataclass(frozen=True)
class Captured:
    """The output and exit status of a command."""

    code: int
    out: str
    err: str


def capture(
    argv: Sequence[str], *, environment: Mapping[str, str], timeout_s: float, most_bytes: int = MOST_BYTES
) -> Captured:
    """Run a command without a shell and with nothing on stdin.

    Raises OSError if it cannot be started or prints too much, subprocess.TimeoutExpired after `timeout_s`.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(list(argv), env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    out, err = (_Reader(stream, process, most_bytes) for stream in (process.stdout, process.stderr))
    try:
        process.wait(timeout_s)
    finally:
        process.kill()  # no effect if it has ended
        process.wait()
        for reader in (out, err):
            reader.thread.join(READ_ON_S)
    if out.too_much or err.too_much:
        raise OSError(errno.EFBIG, f"it printed more than {most_bytes} bytes")
    return Captured(process.returncode, out.text, err.text)


class _Reader:
    """Reads a pipe in its own thread; kills a writer that exceeds the limit."""

    def __init__(self, stream: IO[bytes] | None, process: subprocess.Popen[bytes], most_bytes: int) -> None:
        self._stream, self._process, self._most = stream, process, most_bytes
        self._pieces: list[bytes] = []
        self.too_much = False
        self.thread = Thread(target=self._read, daemon=True)
        self.thread.start()

    @property
    def text(self) -> str:
        return b"".join(self._pieces).decode(errors="replace")

    def _read(self) -> None:
        if self._stream is None:
            return
        left = self._most
        with self._stream as stream:
            while piece := stream.read1(2**16):  # type: ignore[attr-defined]  # a pipe's reader is buffered
                left -= len(piece)
                if left < 0:
                    self.too_much = True
                    self._process.kill()
                    return
                self._pieces.append(piece)
