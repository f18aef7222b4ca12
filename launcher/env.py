"""The process's surroundings: the only file that reads os.environ and the machine's core count."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """CPU cores that this process may use (its affinity mask, not the machine's total)."""
    return len(os.sched_getaffinity(0))
