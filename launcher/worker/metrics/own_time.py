"""The own time of a rank: the part of a step in which it does not wait for others."""

from __future__ import annotations

import os
import time
from pathlib import Path

from launcher import env

_SCHEDSTAT = Path("/proc/thread-self/schedstat")  # ns on a core, ns waiting for a core, time slices
_NS = 1e-9


class BusyClock:
    """Seconds that this thread ran, or was ready to run and had no core; what it slept, as in a collective, is not in.

    So a slow core counts, and a core that is shared with other work; a rank that sleeps or waits for a disk does not
    show. Where the node has fewer cores than ranks, these take the cores from each other, the busy from the slow as
    well as the other way round: there, and on kernels without scheduler statistics, only the time on a core counts.
    On a GPU nothing here is of use: the host thread spins while it waits.
    """

    def __init__(self, *, num_ranks: int) -> None:
        """`num_ranks` share the cores of this node."""
        fair = num_ranks <= env.usable_cores() and _SCHEDSTAT.exists()
        self._fd = os.open(_SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC) if fair else None
        self._before_s = self._now_s()

    def lap(self) -> float:
        """Seconds since the last call; call it in the thread that made the clock."""
        now_s = self._now_s()
        lap_s, self._before_s = now_s - self._before_s, now_s
        return lap_s

    def _now_s(self) -> float:
        if self._fd is None:
            return time.thread_time()
        ran, waited, *_ = os.pread(self._fd, 128, 0).split()
        return (int(ran) + int(waited)) * _NS
