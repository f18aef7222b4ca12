"""Which nodes of a step could not start their task, by the words of srun. Pure.

Where a launch fails, srun then ends the tasks of all other nodes, with KILL: their agents leave no word of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from launcher.text import printable

# Recorded from Slurm 22.05 (tests/slurm/test_slurm_unstarted.py); before 20.11 there was no "StepId=".
_LAUNCH = re.compile(r"srun: error: Task launch for (?:StepId=)?\S+ failed on node (\S+): (.+)")
_TASK = re.compile(r"slurmstepd-([^\s:]+): error: (execve\(\): .+|TaskProlog failed.*)")
_LONGEST_REASON = 120


def unstarted(lines: Iterable[str]) -> dict[str, str]:
    """Map the hosts that could not start their task to the reason."""
    found: dict[str, str] = {}
    for line in lines:
        if match := _LAUNCH.match(line) or _TASK.match(line):
            found.setdefault(match[1], printable(match[2].strip(), longest=_LONGEST_REASON))
    return found


def in_words(hosts: Mapping[str, str]) -> str:
    """Name the hosts, with the reason of the first."""
    return f"{', '.join(hosts)} could not start the step ({next(iter(hosts.values()))})"
