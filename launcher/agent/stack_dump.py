"""Stacks of hanging ranks, by a signal (faulthandler, always) and by py-spy (if it may trace)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launcher import process
from launcher.agent.rank_env import NCCL_PIPE_STEM

WAIT_S = 5.0  # for a rank that prints its stack in pieces, on a busy machine
SETTLE_S = 0.1
PRINTED_LINES = 400  # of a rank, searched for its stack
PY_SPY_TIMEOUT_S = 10.0
SHOWN_FRAMES = 6
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>.+)$')


@dataclass(frozen=True)
class CallStack:
    """The position of a rank. `state` is the kernel's letter (T: stopped); `frames`: file:function, innermost first."""

    state: str
    frames: tuple[str, ...]
    text: tuple[str, ...]


class Printed(Protocol):
    """The output of ranks since their start."""

    def printed_bytes(self, local_rank: int) -> int: ...

    def last_lines(self, local_rank: int, *, num_lines: int) -> list[str]: ...


def dump(
    pids: Mapping[int, int], *, number: int, printed: Printed, send: Callable[[list[int]], None]
) -> dict[int, CallStack]:
    """Return the stacks by local rank. `send` signals ranks, which then print them."""
    states = {rank: process.state(pid) or "gone" for rank, pid in pids.items()}
    before = {rank: printed.printed_bytes(rank) for rank in pids}
    # A stopped process would print later, when continued; one without a handler would be killed by the signal.
    asked = {rank for rank, pid in pids.items() if states[rank] not in ("T", "Z") and process.catches(pid, number)}
    send(sorted(asked))
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and not all(_is_whole(_new_lines(printed, r, since=before[r])) for r in asked):
        time.sleep(0.05)
    time.sleep(SETTLE_S)  # for the launcher's own frames, below those of the script
    lines = {rank: _new_lines(printed, rank, since=before[rank]) if rank in asked else [] for rank in pids}
    return {rank: _stack(states[rank], lines[rank]) for rank in pids}


def _new_lines(printed: Printed, rank: int, *, since: int) -> list[str]:
    """Return what a rank has printed after its first `since` bytes, but for what is older than PRINTED_LINES."""
    new = printed.printed_bytes(rank) - since
    return "\n".join(printed.last_lines(rank, num_lines=PRINTED_LINES))[-new:].splitlines() if new else []


def _is_whole(lines: list[str]) -> bool:
    """Whether a stack is there down to the script: the main thread comes last."""
    return parse(lines)[-1:] != () and parse(lines)[-1].endswith(":<module>")


def py_spy(pid: int) -> str | None:
    """Return py-spy's dump of a process; None if py-spy is not installed or may not trace."""
    sibling = Path(sys.executable).with_name("py-spy")  # in a virtual environment that is not on the PATH
    program = shutil.which("py-spy") or (str(sibling) if sibling.exists() else None)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "dump", "--pid", str(pid)], capture_output=True, text=True, timeout=PY_SPY_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def ask_nccl(logs: Path, ranks: Iterable[int]) -> list[int]:
    """Make NCCL's flight recorder of these ranks write its trace next to the logs; return the ranks reached."""
    reached = []
    for rank in ranks:
        try:
            fd = os.open(logs / f"{NCCL_PIPE_STEM}{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # no pipe or no reader: this rank does not use NCCL
            continue
        os.write(fd, b"1")
        os.close(fd)
        reached.append(rank)
    return reached


def parse(lines: list[str]) -> tuple[str, ...]:
    """Parse the main thread's frames from faulthandler's text, innermost first, down to the script: file:function."""
    frames: list[str] = []
    inside = False
    for line in lines:
        if "most recent call first" in line:
            inside, frames = True, []  # the main thread comes last
        elif inside and (match := _FRAME.match(line)):
            frames.append(f"{Path(match['file']).name}:{match['name']}")
            inside = match["name"] != "<module>"
        elif line.strip():
            inside = False
    return tuple(frames)


def _stack(state: str, printed: list[str]) -> CallStack:
    lines = [line for line in printed if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith(("Current thread", "Thread 0x"))]
    lines = lines[starts[-1] :] if starts else []
    return CallStack(state, parse(lines), tuple(lines[: SHOWN_FRAMES + 1]))
