"""Finds hanging and slow ranks from heartbeats. No clocks, no processes here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launcher.run.heartbeat import Pace, RankState

COMPARABLE = 3  # the median of two does not show which one is slow


@dataclass(frozen=True)
class Hang:
    """Local ranks that have been silent for `silent_s`, the longest silent first, and the step of each.

    `kind`: "heartbeat": their heartbeats stopped; "start": they never sent one; "silence": no rank of the job does
    anything; "elsewhere": another node has found it.
    """

    silent: tuple[int, ...]
    silent_s: float
    steps: Mapping[int, int]
    kind: str = "heartbeat"

    @property
    def behind(self) -> tuple[int, ...]:
        """The ranks that have finished fewer steps than others, if any."""
        least = min(self.steps.values())
        return tuple(r for r, step in self.steps.items() if step == least) if least < max(self.steps.values()) else ()


@dataclass(frozen=True)
class Straggler:
    """A rank with an own time per step above the median of its peers by `factor`, for `steps` steps."""

    rank: int
    own_s: float
    median_s: float
    steps: int

    @property
    def factor(self) -> float:
        return self.own_s / self.median_s


@dataclass
class RankWatch:
    """Follows the heartbeats during one start of the ranks."""

    hang_timeout_s: float | None
    start_timeout_s: float | None
    straggler_factor: float
    straggler_steps: int
    _slow: dict[int, int] = field(default_factory=dict)  # rank → slow steps in a row
    _seen: dict[int, Pace] = field(default_factory=dict)  # rank → pace at the last check
    _own_s: dict[int, float] = field(default_factory=dict)  # rank → own seconds per step, between the last two checks
    _named: set[int] = field(default_factory=set)

    def hang(self, states: Mapping[int, RankState], *, now: float) -> Hang | None:
        """Return a hang if a rank's heartbeats have stopped for too long."""
        watched = {rank: state for rank, state in states.items() if state.beat_at}
        if self.hang_timeout_s is None or not watched:
            return None
        silence = {rank: now - state.beat_at for rank, state in watched.items()}
        silent = sorted((r for r, s in silence.items() if s > self.hang_timeout_s), key=lambda r: -silence[r])
        if not silent:
            return None
        return Hang(tuple(silent), silence[silent[0]], {rank: state.step for rank, state in watched.items()})

    def start_hang(
        self, states: Mapping[int, RankState], *, expected: bool, started_at: float, now: float
    ) -> Hang | None:
        """Return a hang if a rank should send heartbeats but has sent none long after its start.

        `expected`: the program certainly sends heartbeats; otherwise it should if another rank does.
        """
        late = tuple(rank for rank, state in states.items() if not state.beat_at)
        if self.start_timeout_s is None or not late or now - started_at <= self.start_timeout_s:
            return None
        if not expected and len(late) == len(states):
            return None
        steps = {rank: state.step for rank, state in states.items()}
        return Hang(late, now - started_at, steps, kind="start")

    def stragglers(self, paces: Mapping[int, Pace], *, stages: Mapping[int, int] | None = None) -> list[Straggler]:
        """Return ranks that have just become stragglers; each is reported once.

        A rank is compared with those of its pipeline stage, which do the same work, if there are at least three;
        otherwise with all ranks.
        """
        from statistics import median  # and with it decimal, which no start needs

        new_steps = self._look(paces)
        by_stage: dict[int, list[float]] = {}
        for rank, own_s in self._own_s.items():
            by_stage.setdefault((stages or {}).get(rank, 0), []).append(own_s)
        found = []
        for rank in new_steps:
            peers = by_stage[(stages or {}).get(rank, 0)]
            peers = peers if len(peers) >= COMPARABLE else list(self._own_s.values())
            if len(peers) < COMPARABLE or rank in self._named:
                continue
            slow = Straggler(rank, self._own_s[rank], median(peers), self._slow.get(rank, 0) + new_steps[rank])
            self._slow[rank] = slow.steps if slow.own_s > self.straggler_factor * slow.median_s else 0
            if self._slow[rank] >= self.straggler_steps:
                self._named.add(rank)
                found.append(slow)
        return found

    def _look(self, paces: Mapping[int, Pace]) -> dict[int, int]:
        """Record the progress of ranks; return how many steps each has made since the last check, if any."""
        new_steps: dict[int, int] = {}
        for rank, pace in paces.items():
            before = self._seen.get(rank)
            if before and pace.step > before.step:
                new_steps[rank] = pace.step - before.step
                self._own_s[rank] = (pace.own_s - before.own_s) / new_steps[rank]
            if pace.step:  # the first check only sets the base: the first steps warm up
                self._seen[rank] = pace
        return new_steps


def odd_ones_out(signatures: Mapping[int, Sequence[str]]) -> list[int]:
    """Return ranks at a different place than most; empty if all agree or there is no majority."""
    places: dict[tuple[str, ...], list[int]] = {}
    for rank, frames in signatures.items():
        places.setdefault(tuple(frames), []).append(rank)
    most = max(places.values(), key=len, default=[])
    return sorted(r for r in signatures if r not in most) if 2 * len(most) > len(signatures) else []
