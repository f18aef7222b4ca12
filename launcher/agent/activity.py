"""Detects whether ranks do anything at all, by their output, CPU time and heartbeats.

This finds hangs where no heartbeats are sent: in imports, a rendezvous, the build of an extension, a plain script.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

BUSY_SHARE = 0.01  # of a core, including children: threads that only wait (wandb, tqdm, a watchdog) use less
LOOKS = 60  # checks within the time limit
SHORTEST_LOOK_S = 0.25


@dataclass
class ActivityWatch:
    """Follows the ranks of a node over one start. `cpu_seconds` returns the CPU time of every process tree."""

    limit_s: float | None
    cpu_seconds: Callable[[], Mapping[int, float]]
    started_at: float
    _looked_at: float = 0.0
    _active_at: float = 0.0
    _pids: frozenset[int] = frozenset()
    _marks: dict[int, tuple[float, float]] = field(default_factory=dict)  # process → (time, CPU seconds at that time)

    def silent_s(self, pids: Mapping[int, int], signs: Mapping[int, float], *, now: float) -> float:
        """Return how long no rank has done anything. `signs`: when each local rank last printed or sent a heartbeat.

        The end of a rank counts as activity.
        """
        if self.limit_s is None:
            return 0.0
        if frozenset(pids.values()) != self._pids:
            self._pids, self._active_at = frozenset(pids.values()), now if self._pids else self.started_at
        if now - self._looked_at >= max(SHORTEST_LOOK_S, self.limit_s / LOOKS):
            self._looked_at = now
            self._look(pids, now=now)
        return max(0.0, now - max(self.started_at, self._active_at, *signs.values()))

    def _look(self, pids: Mapping[int, int], *, now: float) -> None:
        seconds = self.cpu_seconds()
        for pid in pids.values():
            marked_at, marked = self._marks.setdefault(pid, (now, seconds.get(pid, 0.0)))
            used = seconds.get(pid, 0.0) - marked
            if used < 0 or (now > marked_at and used >= BUSY_SHARE * (now - marked_at)):
                self._active_at = now
                self._marks[pid] = (now, seconds.get(pid, 0.0))
