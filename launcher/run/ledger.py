"""The ledger: when each phase of a start was reached, on every node and rank, since the command was typed.

ledger.jsonl has one line for each phase reached: {"phase", "node", "rank", "start", "since_s", "at"}. Phases of a
rank come from the board, so a script that tells nothing still shows when it began and ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from launcher import process
from launcher.run.folder import RunFolder, append_line
from launcher.run.heartbeat import RankState

PHASES = ("planned", "preloaded", "server", "met", "forked", "script", "groups", "first_step")


class Ledger:
    """Writes one node's lines. Times count from `began` (CLOCK_MONOTONIC)."""

    def __init__(self, folder: RunFolder, *, node: int | None, began: float) -> None:
        self._path, self.node, self._origin = folder.ledger, node, began
        self._told: set[tuple[int, str]] = set()
        self.start = 0

    def note(self, phase: str, *, rank: int | None = None, at: float | None = None, **details: Any) -> None:
        """A phase was reached, now or at a CLOCK_MONOTONIC time."""
        moment = time.monotonic() if at is None else at
        line = {
            "phase": phase,
            "node": self.node,
            "rank": rank,
            "start": self.start,
            "since_s": round(moment - self._origin, 4),
            "at": round(time.time() - (time.monotonic() - moment), 3),
        }
        append_line(self._path, line | details)

    def begin(self) -> None:
        """The ranks are about to be started (anew)."""
        self.start += 1
        self._told.clear()

    def note_board(self, states: Mapping[int, RankState]) -> None:
        """Lines for what ranks (global) have reached since the last call."""
        for rank, state in states.items():
            for phase, at in (
                ("script", state.script_at),
                ("groups", state.groups_at),
                ("first_step", state.first_step_at),
            ):
                if at and (rank, phase) not in self._told:
                    self._told.add((rank, phase))
                    self.note(phase, rank=rank, at=at)


def command_began() -> float:
    """When this process began, which is when the command was typed (CLOCK_MONOTONIC, to 10 ms)."""
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - process.started_at(os.getpid())
    return time.monotonic() - age_s


@dataclass(frozen=True)
class PhaseTime:
    """One phase of one start over all nodes and ranks."""

    phase: str
    start: int
    median_s: float
    slowest_s: float
    slowest: str


def summarise(lines: Iterable[Mapping[str, Any]]) -> list[PhaseTime]:
    """Median and slowest of each phase, in the order in which they were reached."""
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        if line.get("phase") in PHASES:
            groups.setdefault((line["start"], line["phase"]), []).append(line)
    found = [_phase_time(start, phase, group) for (start, phase), group in groups.items()]
    return sorted(found, key=lambda p: (p.start, PHASES.index(p.phase)))


def _phase_time(start: int, phase: str, group: list[Mapping[str, Any]]) -> PhaseTime:
    slowest = max(group, key=lambda line: line["since_s"])
    who = f"node {slowest['node']}" + (f", rank {slowest['rank']}" if slowest["rank"] is not None else "")
    return PhaseTime(phase, start, median(line["since_s"] for line in group), slowest["since_s"], who)
