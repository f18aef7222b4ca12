"""The findings of rules, and their input."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache

from launcher.lint.script import BatchScript
from launcher.secret import SECRET_VALUES

NOT_SHOWN = re.compile(rf"{SECRET_VALUES}|\b[0-9a-f]{{40,}}\b")


@lru_cache(maxsize=1000)
def nearest(name: str, known: frozenset[str]) -> str | None:
    """The name that a misspelt one was probably meant to be."""
    near = get_close_matches(name[:80], known, n=1, cutoff=0.75)
    return near[0] if near else None


@dataclass(frozen=True)
class LintFinding:
    """One trap in a batch script: where, which rule, how bad (`error`: breaks or hangs; `warning`), why, what to do."""

    line: int
    rule: str
    severity: str
    found: str
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.severity} [{self.rule}] {self.found}\n    {self.reason}\n    → {self.fix}"


@dataclass(frozen=True)
class Subject:
    """A script and the GPUs of the node that it will run on (None: unknown)."""

    script: BatchScript
    gpus_per_node: int | None


@dataclass(frozen=True)
class Trap:
    """A place where a rule applies."""

    line: int
    found: str


@dataclass(frozen=True)
class Rule:
    """A known trap: how to see it, why it is one, and the way out."""

    name: str
    severity: str
    check: Callable[[Subject], Iterator[Trap]]
    reason: str
    fix: str

    def findings(self, subject: Subject) -> Iterator[LintFinding]:
        for trap in self.check(subject):
            found = NOT_SHOWN.sub(lambda secret: f"{secret[0][:3]}…", " ".join(trap.found.split()))
            shown = found if len(found) <= 100 else f"{found[:97]}..."
            yield LintFinding(trap.line, self.name, self.severity, shown, self.reason, self.fix)
