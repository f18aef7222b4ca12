"""The checksum of a checkpoint's files: five times as fast as SHA-256, which took longer than the rest of a restore.

A file is cut into panels of 128 rows of 1,024 words of 8 bytes. Of each panel every row and every column is summed
(modulo 2^64, little-endian), and SHA-256 is taken over all sums; what is less than a panel at the end goes in as it is.
So one to three changed words, wherever they are, always show, and so does a panel in another's place; what goes unseen
must change four words that are the corners of a rectangle by amounts that cancel. It shows damage, not forgery: for
that a manifest would need a signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from launcher.run.checkpoints import size_problem

ROWS, COLUMNS = 128, 1024
PANEL_BYTES = ROWS * COLUMNS * 8
NAME = "sums128x1024"  # the key of the checksum in a manifest


class Checksum:
    """Takes the bytes of a file piece by piece; where one piece ends and the next begins makes no difference."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._part = bytearray(PANEL_BYTES)
        self._filled = 0

    def update(self, data: memoryview) -> None:
        position = self._fill(data) if self._filled else 0
        while len(data) - position >= PANEL_BYTES:
            self._add(data[position : position + PANEL_BYTES])
            position += PANEL_BYTES
        if position < len(data):
            self._fill(data[position:])

    def hexdigest(self) -> str:
        """Of all bytes until now; takes no more afterwards."""
        self._digest.update(memoryview(self._part)[: self._filled])
        return self._digest.hexdigest()

    def _fill(self, data: memoryview) -> int:
        """Add to the panel that is begun; returns how many bytes it took."""
        taken = min(PANEL_BYTES - self._filled, len(data))
        self._part[self._filled : self._filled + taken] = data[:taken]
        self._filled += taken
        if self._filled == PANEL_BYTES:
            self._add(memoryview(self._part))
            self._filled = 0
        return taken

    def _add(self, panel: memoryview) -> None:
        words = np.frombuffer(panel, dtype="<i8").reshape(ROWS, COLUMNS)
        for axis in (0, 1):
            self._digest.update(words.sum(axis=axis, dtype="<i8").data)


def file_problem(folder: Path, name: str, expected: Mapping[str, Any]) -> str | None:
    """Return the problem of one file of a checkpoint, or None. `expected`: its entry in the manifest."""
    path = folder / name
    if problem := size_problem(path, expected["bytes"]):
        return problem
    try:
        # Version 1 has SHA-256.
        right = _read(path, Checksum()) == expected[NAME] if NAME in expected else _is_sha256(path, expected)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return (
        None
        if right
        else f"{path} has a different checksum than when it was written: it was changed or the disk is failing"
    )


def _is_sha256(path: Path, expected: Mapping[str, Any]) -> bool:
    return bool(_read(path, hashlib.sha256()) == expected["sha256"])


def _read(path: Path, checksum: Any) -> str:
    piece = memoryview(bytearray(PANEL_BYTES))
    update: Callable[[memoryview], None] = checksum.update
    with path.open("rb", buffering=0) as file:
        while filled := read_into(file, piece):
            update(piece[:filled])
    found: str = checksum.hexdigest()
    return found


def read_into(file: Any, piece: memoryview) -> int:
    """Fill a piece as far as the file goes; returns how far that is."""
    filled = 0
    while filled < len(piece) and (count := file.readinto(piece[filled:])):
        filled += count
    return filled
