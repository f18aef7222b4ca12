"""Results of checks before a job: levels, findings, and their consequences for the job."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """Severity of a finding; a job should not start with a PROBLEM."""

    OK = 0
    UNKNOWN = 1  # could not be checked here
    WARNING = 2
    PROBLEM = 3


@dataclass(frozen=True)
class Finding:
    """One result of one check on one host: what was found, what was expected, what to do."""

    level: Level
    check: str
    message: str
    host: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return plain data, with the level by name."""
        return {"level": self.level.name.lower(), "check": self.check, "message": self.message, "host": self.host}


def worst(findings: Iterable[Finding]) -> Level:
    """Return the level of the worst finding; OK if there are none."""
    return max((finding.level for finding in findings), default=Level.OK)


def hosts_to_exclude(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return hosts with a problem, for sbatch --exclude."""
    return tuple(sorted({f.host for f in findings if f.level is Level.PROBLEM and f.host}))
