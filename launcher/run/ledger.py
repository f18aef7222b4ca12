"""ledger.jsonl: times of events since the user entered the command. Two kinds of lines:

    {"phase", "node", "rank", "start", "since_s", "at", …}   a phase of a start was reached, on a node or a rank
    {"event", "at", "job_id", …}                             an event of a batch job

Phases of a rank come from the heartbeats, so even a script that reports nothing shows when it began and ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from launcher import process
from launcher.console import notify
from launcher.errors import InputError
from launcher.files import append_line, read_lines
from launcher.run.heartbeat import RankState
from launcher.schema import from_plain

T = TypeVar("T")
# The phases of a start in order, and what was reached with each.
PHASE_WORDS: Mapping[str, str] = MappingProxyType({
    "planned": "the plan was made",
    "preloaded": "torch was imported",
    "server": "ranks could be forked",
    "met": "the nodes had met",
    "forked": "the ranks were started",
    "script": "their script began",
    "groups": "their process groups were ready",
    "first_step": "the first step was finished",
})  # fmt: skip
PHASES = tuple(PHASE_WORDS)
OTHER_PHASES = ("ended", "failed", "straggler")  # not part of a start
START, PLACED, PREFLIGHT, BANDWIDTH = "slurm_start", "slurm_placed", "slurm_preflight", "slurm_bandwidth"
STEP, REPLACED, END = "slurm_step", "slurm_replaced", "slurm_end"


@dataclass(frozen=True)
class PhaseLine:
    """A phase of the start number `start`; `rank` is None for one of the node, `node` for a spare's.

    `since_s`: seconds since the user entered the command. `at`: seconds since 1970.
    """

    phase: str
    node: int | None
    rank: int | None
    start: int
    since_s: float
    at: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in _PHASE_KEYS}
        return named | dict(self.details)


_PHASE_KEYS = ("phase", "node", "rank", "start", "since_s", "at")
_EVENT_KEYS = ("event", "job_id", "at")


@dataclass(frozen=True)
class JobEvent:
    """An event of a batch job: one of START … END. `at`: seconds since 1970."""

    event: str
    job_id: str
    at: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _EVENT_KEYS} | dict(self.details)


def append_event(path: Path, event: JobEvent) -> None:
    """Append an event of a batch job."""
    append_line(path, event.to_line())


def read_events(path: Path) -> list[JobEvent]:
    """Read the events of a run's batch jobs, in order."""
    return list(_read(JobEvent, path, _EVENT_KEYS))


def read_phases(path: Path) -> list[PhaseLine]:
    """Read the phases that were reached, in order."""
    return list(_read(PhaseLine, path, _PHASE_KEYS))


def _read(kind: type[T], path: Path, names: Sequence[str]) -> Iterator[T]:
    """Yield lines that have all these keys with valid values; other keys are details."""
    for line in read_lines(path):
        if all(name in line for name in names):
            named = {name: line.pop(name) for name in names}
            with suppress(InputError):  # a damaged line is skipped like a torn one
                yield from_plain(kind, {**named, "details": line})


class Ledger:
    """Writes one node's phases. Times count from `began` (CLOCK_MONOTONIC)."""

    def __init__(self, path: Path, *, node: int | None, began: float) -> None:
        self._path, self.node, self._origin = path, node, began
        self._noted: set[tuple[int, str]] = set()
        self.start = 0
        self._lost = 0

    def note(self, phase: str, *, rank: int | None = None, at: float | None = None, **details: Any) -> None:
        """Record a phase, now or at a CLOCK_MONOTONIC time. A failed write is reported once."""
        moment = time.monotonic() if at is None else at
        since_s = round(moment - self._origin, 4)
        wall = round(time.time() - (time.monotonic() - moment), 3)
        line = PhaseLine(phase, self.node, rank, self.start, since_s, wall, details).to_line()
        try:
            append_line(self._path, line)
        except OSError as error:
            if not self._lost:
                notify(f"{self._path} cannot be written ({error.strerror}): the job goes on, without its phases")
            self._lost += 1

    def begin(self) -> None:
        """Begin a new start of the ranks."""
        self.start += 1
        self._noted.clear()

    def note_states(self, states: Mapping[int, RankState]) -> None:
        """Record what (global) ranks have reached since the last call."""
        for rank, state in states.items():
            for phase, at in (
                ("script", state.script_at),
                ("groups", state.groups_at),
                ("first_step", state.first_step_at),
            ):
                if at and (rank, phase) not in self._noted:
                    self._noted.add((rank, phase))
                    self.note(phase, rank=rank, at=at)


def command_began() -> float:
    """Return when this process began, which is when the user entered the command (CLOCK_MONOTONIC, to 10 ms)."""
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


def summarise(lines: Iterable[PhaseLine]) -> list[PhaseTime]:
    """Return median and slowest of each phase, in the order in which they were reached."""
    groups: dict[tuple[int, str], list[PhaseLine]] = {}
    for line in lines:
        if line.phase in PHASES:
            groups.setdefault((line.start, line.phase), []).append(line)
    found = [_phase_time(start, phase, group) for (start, phase), group in groups.items()]
    return sorted(found, key=lambda p: (p.start, PHASES.index(p.phase)))


def _phase_time(start: int, phase: str, group: list[PhaseLine]) -> PhaseTime:
    from statistics import median  # and with it decimal, which no start needs

    slowest = max(group, key=lambda line: line.since_s)
    who = f"node {slowest.node}" + (f", rank {slowest.rank}" if slowest.rank is not None else "")
    return PhaseTime(phase, start, median(line.since_s for line in group), slowest.since_s, who)
