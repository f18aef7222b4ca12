"""Texts from outside, taken with care: numbers of bounded length, and words that may be shown to a person.

`str.isdigit` and `\\d` know digits that `int` does not, and `int` refuses more than 4300 of them.
"""

from __future__ import annotations

import re

from launcher.errors import InputError

MOST_DIGITS = 18  # fits 64 bits
MOST_CHARACTERS = 4 * 2**20  # more than any of the site's commands prints of one node
_WHOLE = re.compile(rf"[0-9]{{1,{MOST_DIGITS}}}")
_DECIMAL = re.compile(rf"[0-9]{{1,{MOST_DIGITS}}}(\.[0-9]{{0,{MOST_DIGITS}}})?")


def whole_number(text: str | None) -> int | None:
    """The number that a text of ASCII digits says; None for any other text, or one too long for any count."""
    return int(text) if text is not None and _WHOLE.fullmatch(text) else None


def decimal_number(text: str | None) -> float | None:
    """As `whole_number`, with a decimal point or without."""
    return float(text) if text is not None and _DECIMAL.fullmatch(text) else None


def bounded(text: str, what: str, *, most: int = MOST_CHARACTERS) -> str:
    """The text; raises InputError where it is longer than what it should be ever is."""
    if len(text) > most:
        raise InputError(f"this is not {what}: it has more than {most} characters")
    return text


def printable(text: str, *, longest: int = 80) -> str:
    """A text on one line, without control characters, and not longer than this."""
    cut = text[: longest + 1]
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)
    return shown if len(cut) <= longest else f"{shown[: longest - 1]}…"
