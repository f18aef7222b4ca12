"""`launcher export`: a plan in another launcher's terms, on standard output."""

from __future__ import annotations

from launcher.commands.common import OVERRIDE, plan_of
from launcher.commands.invocation import Invocation
from launcher.errors import InputError
from launcher.export.formats import EXPORTERS, export


def run(invocation: Invocation) -> int:
    words = list(invocation.overrides)
    targets = [word.partition("=")[2] for word in words if word.startswith("to=")]
    if not targets:
        raise InputError(f"say what to export to: to={'|'.join(sorted(EXPORTERS))}")
    named_run = bool(words) and not OVERRIDE.match(words[0])
    rest = [word for word in words if not word.startswith("to=")]
    if named_run and len(rest) > 1:
        raise InputError(f"a run's plan is exported as it stands: leave {' '.join(rest[1:])} out, or leave the run out")
    print(export(plan_of(rest), targets[-1]), end="")
    return 0
