"""`launcher compare A B`: two runs, plans or measurements; exit code 1 where B is worse by more than fail_over=."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.commands.invocation import Invocation
from launcher.commands.named import options, resolved, says_json
from launcher.console import show, terminal_width
from launcher.errors import InputError
from launcher.report.comparison import MeasuredChange, Side, changes, check_comparable, differences
from launcher.report.table import LEFT, draw

USAGE = "`launcher compare A B [fail_over=5%]` takes two run folders or plan files"


def run(invocation: Invocation) -> int:
    """Print what differs. Return 1 if B is worse by more than both `fail_over` and the noise."""
    named, words = _named(invocation.overrides)
    wanted = options(words, allowed=["fail_over", "output"])
    threshold = _threshold(wanted.get("fail_over"))
    a, b = (Side.read(Path(resolved(name))) for name in named)
    check_comparable(a, b)
    found, settings = changes(a, b), [str(setting) for setting in differences(a, b)]
    failed = [change for change in found if threshold is not None and change.exceeds(threshold)]
    if says_json(wanted):
        shown = [change.to_dict() for change in found]
        print(json.dumps({"a": a.name, "b": b.name, "changes": shown, "settings": settings, "failed": len(failed)}))
    else:
        show(*_text(a, b, found, settings, failed))
    return int(bool(failed))


def _text(
    a: Side, b: Side, found: Sequence[MeasuredChange], settings: Sequence[str], failed: Sequence[MeasuredChange]
) -> list[str]:
    rows = [[change.name, change.a, change.b, change.verdict] for change in found]
    lines = [f"A: {a.name}", f"B: {b.name}"]
    columns, width = dict.fromkeys(("", "A", "B", "B against A"), LEFT), terminal_width(sys.stdout)
    lines += draw(columns, rows, width=width) if rows else ["nothing was measured in both"]
    lines += (
        ["settings that differ:", *(f"  {line}" for line in settings)] if settings else ["the settings are the same"]
    )
    return lines + [f"worse than fail_over allows: {change.name}, {change.verdict}" for change in failed]


def _named(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    named = [word for word in words if "=" not in word]
    if len(named) != 2:
        raise InputError(f"{USAGE} (found {len(named)})")
    return named, [word for word in words if "=" in word]


def _threshold(text: str | None) -> float | None:
    """Parse `5%` or `0.05`; None if the option was not given."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    if match is None:
        raise InputError(f"fail_over={text} is not a fraction: write fail_over=5% or fail_over=0.05")
    return float(match[1]) / (100 if match[2] else 1)
