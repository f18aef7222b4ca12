"""Limits of waiting on a machine that others use too."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from launcher.env import usable_cores

MOST_TIMES = 12.0


def slowness() -> float:
    """How many programs want each core, from 1 to a bound that a hang is found within."""
    return min(MOST_TIMES, max(1.0, os.getloadavg()[0] / usable_cores()))


@dataclass
class Patience:
    """Seconds of a machine that has a core for everybody; a busy machine has the same number, each longer.

    So load alone does not end a wait, and a hang still does.
    """

    left_s: float
    looked: float = field(default_factory=time.monotonic)

    def over(self) -> bool:
        now = time.monotonic()
        self.left_s -= (now - self.looked) / slowness()
        self.looked = now
        return self.left_s <= 0
