"""A command at a terminal of some width, and the same without one."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
import threading

import pytest

from launcher.cli import main


def at_terminal(words: list[str], *, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command prints at a terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown: list[bytes] = []
    reader = threading.Thread(target=_read, args=(master, shown))
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        main(words)
    reader.join(timeout=60)
    os.close(master)
    return b"".join(shown).decode().replace("\r\n", "\n")


def _read(master: int, shown: list[bytes]) -> None:
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # the other side is closed
            return
        if not piece:
            return
        shown.append(piece)
