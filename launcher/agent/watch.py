"""What heartbeats say about the health of a node's ranks: who hangs, who is slow. No clocks, no processes here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from launcher.run.heartbeat import Pace, RankState

COMPARABLE = 3  # the median of two cannot tell which of them is odd


@dataclass(frozen=True)
class Hang:
    """Ranks (local) that have been silent for `silent_s`, the longest silent first, and the step where each stands.

    `kind`: "heartbeat", they sent some and then no more; "start", they never sent one; "silence", no rank of the job
    does anything; "elsewhere", another node has found it.
    """

    silent: tuple[int, ...]
    silent_s: float
    steps: Mapping[int, int]
    kind: str = "heartbeat"

    @property
    def behind(self) -> tuple[int, ...]:
        """The ranks that have finished fewer steps than others, where any have."""
        least = min(self.steps.values())
        return tuple(r for r, step in self.steps.items() if step == least) if least < max(self.steps.values()) else ()


@dataclass(frozen=True)
class Straggler:
    """A rank whose own time a step stays above the median of its peers by `factor`, for `steps` of them."""

    rank: int
    own_s: float
    median_s: float
    steps: int

    @property
    def factor(self) -> float:
        return self.own_s / self.median_s


@dataclass
class RankWatch:
    """Follows the heartbeats over the life of one start of the ranks."""

    hang_timeout_s: float | None
    start_timeout_s: float | None
    straggler_factor: float
    straggler_steps: int
    _slow: dict[int, int] = field(default_factory=dict)  # rank → slow steps in a row
    _seen: dict[int, Pace] = field(default_factory=dict)  # rank → as last looked at
    _own_s: dict[int, float] = field(default_factory=dict)  # rank → own seconds a step, between the last two looks
    _named: set[int] = field(default_factory=set)

    def hang(self, states: Mapping[int, RankState], *, now: float) -> Hang | None:
        """A hang, where a rank that once sent heartbeats has sent none for too long."""
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
        """A hang, where a rank has sent no heartbeat long after its start, though it should.

        `expected`: the program is known to send some; otherwise it is where another rank has.
        """
        late = tuple(rank for rank, state in states.items() if not state.beat_at)
        if self.start_timeout_s is None or not late or now - started_at <= self.start_timeout_s:
            return None
        if not expected and len(late) == len(states):
            return None
        steps = {rank: state.step for rank, state in states.items()}
        return Hang(late, now - started_at, steps, kind="start")

    def stragglers(self, paces: Mapping[int, Pace], *, stages: Mapping[int, int] | None = None) -> list[Straggler]:
        """Ranks that have just become stragglers; each is told once.

        A rank is compared with those of its pipeline stage, whose work is the same, where there are three or more;
        else with all.
        """
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
        """Take in how far the ranks are; returns how many steps each has made since the last look, where any."""
        new_steps: dict[int, int] = {}
        for rank, pace in paces.items():
            before = self._seen.get(rank)
            if before and pace.step > before.step:
                new_steps[rank] = pace.step - before.step
                self._own_s[rank] = (pace.own_s - before.own_s) / new_steps[rank]
            if pace.step:  # the first look only marks the place: the first steps warm up
                self._seen[rank] = pace
        return new_steps


def odd_ones_out(signatures: Mapping[int, Sequence[str]]) -> list[int]:
    """Ranks that are somewhere else than most: empty where all agree, or where there is no majority."""
    places: dict[tuple[str, ...], list[int]] = {}
    for rank, frames in signatures.items():
        places.setdefault(tuple(frames), []).append(rank)
    most = max(places.values(), key=len, default=[])
    return sorted(r for r in signatures if r not in most) if 2 * len(most) > len(signatures) else []
