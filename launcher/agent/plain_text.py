"""Converts output of ranks to plain lines: without control sequences and intermediate progress bars."""

from __future__ import annotations

import re

BAR_EVERY_S = 10.0  # log a progress bar at this interval, and at its end
LONGEST = 1 << 16  # a longer line is written in pieces
_END = re.compile(rb"([\r\n])")
# CSI and OSC sequences (ECMA-48 sections 5.4 and 8.3.89) and other two-byte escapes.
_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


class PlainLines:
    """Splits one stream into lines, in linear time. A carriage return restarts the line."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._replaced = b""  # the line before its last carriage return
        self._is_bar = False
        self._bar_at = -BAR_EVERY_S

    @property
    def unfinished(self) -> bool:
        """Whether there is an unfinished line that is not a progress bar."""
        return bool(self._line) and not self._is_bar

    def feed(self, data: bytes, *, now: float) -> bytes:
        """Return the lines that these bytes complete."""
        found = []
        pieces = _END.split(data)
        for text, end in zip(pieces[::2], pieces[1::2], strict=False):
            self._line += text
            found.append(self._end_line() if end == b"\n" else self._return(now))
        self._line += pieces[-1]
        if len(self._line) > LONGEST:
            found.append(self.rest())
        return b"".join(found)

    def rest(self) -> bytes:
        """Return the unfinished line unchanged: a prompt, or the last output of a dead rank."""
        if self._is_bar:
            return self._end_line() if self._line or self._replaced else b""
        text = _SEQUENCE.sub(b"", bytes(self._line))
        self._line.clear()
        return text

    def _return(self, now: float) -> bytes:
        if not self._line:
            return b""
        self._replaced, self._is_bar = self._take(), True
        if now - self._bar_at < BAR_EVERY_S:
            return b""
        self._bar_at = now
        shown, self._replaced = self._replaced, b""
        return shown + b"\n" if shown.strip() else b""

    def _end_line(self) -> bytes:
        text, was_bar = self._take(), self._is_bar
        text = text or self._replaced
        self._replaced, self._is_bar, self._bar_at = b"", False, self._bar_at if was_bar else -BAR_EVERY_S
        return text + b"\n" if text or not was_bar else b""

    def _take(self) -> bytes:
        text = _SEQUENCE.sub(b"", bytes(self._line))
        self._line.clear()
        return text
