"""Untrusted text: numbers of bounded length, and text that is safe to print.

`str.isdigit` and `\\d` accept digits that `int` rejects, and `int` rejects more than 4300 of them.
"""

from __future__ import annotations

import re

from launcher.errors import InputError

MOST_DIGITS = 18  # fits 64 bits
MOST_CHARACTERS = 4 * 2**20  # more than any site command prints for one node
_WHOLE = re.compile(rf"[0-9]{{1,{MOST_DIGITS}}}")
_DECIMAL = re.compile(rf"[0-9]{{1,{MOST_DIGITS}}}(\.[0-9]{{0,{MOST_DIGITS}}})?")


def whole_number(text: str | None) -> int | None:
    """Parse a number of ASCII digits; None for any other text, and for one too long for any count."""
    return int(text) if text is not None and _WHOLE.fullmatch(text) else None


def decimal_number(text: str | None) -> float | None:
    """As `whole_number`, optionally with a decimal point."""
    return float(text) if text is not None and _DECIMAL.fullmatch(text) else None


def bounded(text: str, what: str, *, most: int = MOST_CHARACTERS) -> str:
    """Return the text; raises InputError if it is longer than `what` can be."""
    if len(text) > most:
        raise InputError(f"this is not {what}: it has more than {most} characters")
    return text


def shown(text: str) -> str:
    """Return untrusted text for a terminal: control characters as escapes, so that a reader sees which they are."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def in_brief(text: str, *, longest: int = 120) -> str:
    """Return what another program said in one short line: its last one, which says what it ended for."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[-1] if lines else "", longest=longest)


def printable(text: str, *, longest: int = 80) -> str:
    """Return a text as one line without control characters, truncated to `longest`.

    They are replaced and not escaped as in `shown`: the line may be a name that is kept in YAML, in a comment or in a
    Slurm option, where a backslash means something.
    """
    cut = text[: longest + 1]
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)
    return shown if len(cut) <= longest else f"{shown[: longest - 1]}…"
