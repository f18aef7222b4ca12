"""Gives a forked rank what a new interpreter would have: streams, random state, identity.

launcher/agent/README.md lists what is the same as under torchrun, and what is not.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from launcher import process
from launcher.agent.torch_variables import set_threads
from launcher.fast_exit import leave_to_parent


def freshen(argv: Sequence[str]) -> None:
    """Renew process state; call it in the forked process after redirection. `argv`: what `ps` shows."""
    _open_streams()
    time.tzset()
    process.set_command_line(argv)
    leave_to_parent()
    _draw_entropy()
    _renew_multiprocessing()
    if torch := sys.modules.get("torch"):
        set_threads(torch)


def _open_streams() -> None:
    """Open standard streams unbuffered, as `python -u` does (CPython, create_stdio).

    CPython uses one encoding and error handler for input and output; here only the input still has them, since the
    launcher's own output accepts any character (console.open_streams).
    """
    before = sys.__stdin__
    encoding, errors = ("utf-8", "strict") if before is None else (before.encoding, before.errors)
    raw: Any = io.FileIO(0, "r", closefd=False)
    raw.name = "<stdin>"
    reader: Any = io.TextIOWrapper(io.BufferedReader(raw), encoding, errors, write_through=True)
    reader.mode = "r"
    streams = {
        "stdin": reader,
        "stdout": _writer(1, "<stdout>", encoding, errors),
        "stderr": _writer(2, "<stderr>", encoding, "backslashreplace"),
    }
    for name, stream in streams.items():
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _writer(fd: int, name: str, encoding: str, errors: str | None) -> io.TextIOWrapper:
    raw: Any = io.FileIO(fd, "w", closefd=False)
    raw.name = name
    stream: Any = io.TextIOWrapper(raw, encoding, errors, newline="\n", write_through=True)
    stream.mode = "w"
    return stream  # type: ignore[no-any-return]


def _draw_entropy() -> None:
    """Renew random states that the parent drew at import. `random` reseeds itself after a fork."""
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()  # as at its import; GPU generators are created later, with their own seeds


def _renew_multiprocessing() -> None:
    """Renew the key and the folder that multiprocessing stores at import."""
    if parent := sys.modules.get("multiprocessing.process"):
        parent.current_process().authkey = os.urandom(32)
        parent.ORIGINAL_DIR = os.getcwd()  # type: ignore[attr-defined]  # noqa: PTH109
