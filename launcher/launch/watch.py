"""What the board says about the health of a node's ranks: who hangs, who is slow. No clocks, no processes here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from launcher.board import RankState


@dataclass(frozen=True)
class Hang:
    """Ranks (local) without a heartbeat for `silent_s`, the longest silent first, and the step where each stands."""

    silent: tuple[int, ...]
    silent_s: float
    steps: Mapping[int, int]

    @property
    def behind(self) -> tuple[int, ...]:
        """The ranks that have finished fewer steps than others, where any have."""
        least = min(self.steps.values())
        return tuple(r for r, step in self.steps.items() if step == least) if least < max(self.steps.values()) else ()


class Pace(NamedTuple):
    """How far a rank is, and how long its last step took."""

    step: int
    step_s: float


@dataclass(frozen=True)
class Straggler:
    """A rank whose steps stay slower than the median of all by `factor`, for `steps` of them."""

    rank: int
    step_s: float
    median_s: float
    steps: int

    @property
    def factor(self) -> float:
        return self.step_s / self.median_s


@dataclass
class Watch:
    """Follows the board over the life of one start of the ranks."""

    hang_timeout_s: float | None
    straggler_factor: float
    straggler_steps: int
    _slow: dict[int, int] = field(default_factory=dict)  # rank → slow steps in a row
    _seen: dict[int, int] = field(default_factory=dict)  # rank → the step last looked at
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

    def stragglers(self, paces: Mapping[int, Pace]) -> list[Straggler]:
        """Ranks that have just become stragglers; each is told once.

        A rank counts by what it reports as its step time, which shows its own slowness only where it leaves out the
        waiting for others.
        """
        timed = {rank: pace for rank, pace in paces.items() if pace.step and pace.step_s > 0}
        if len(timed) < 3:  # the median of two cannot tell which of them is odd
            return []
        middle = median(pace.step_s for pace in timed.values())
        found = []
        for rank, pace in timed.items():
            new_steps = pace.step - self._seen.get(rank, 0)
            self._seen[rank] = pace.step
            if new_steps <= 0:
                continue
            slow = pace.step_s > self.straggler_factor * middle
            self._slow[rank] = self._slow.get(rank, 0) + new_steps if slow else 0
            if self._slow[rank] >= self.straggler_steps and rank not in self._named:
                self._named.add(rank)
                found.append(Straggler(rank, pace.step_s, middle, self._slow[rank]))
        return found


def odd_ones_out(signatures: Mapping[int, Sequence[str]]) -> list[int]:
    """Ranks that are somewhere else than most: empty where all agree, or where there is no majority."""
    places: dict[tuple[str, ...], list[int]] = {}
    for rank, frames in signatures.items():
        places.setdefault(tuple(frames), []).append(rank)
    most = max(places.values(), key=len, default=[])
    return sorted(r for r in signatures if r not in most) if 2 * len(most) > len(signatures) else []
