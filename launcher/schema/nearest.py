"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def unknown_key(name: str, known: Sequence[str]) -> str:
    """Return the message for an unknown key or choice, with the nearest known ones, else with those of its group."""
    close = nearest(name, known)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(_siblings(name, known).values())}"
    return f"{name} is not a known key: {hint}"


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """Return at most two similar names, by last component: equal, similar in the same group, similar in any group."""
    last = name.rpartition(".")[2]
    equal = [k for k in known if k.rpartition(".")[2] == last]
    if equal:
        return difflib.get_close_matches(name, equal, n=2, cutoff=0.0)
    siblings = _siblings(name, known)
    found = [siblings[match] for match in difflib.get_close_matches(last, siblings, n=2, cutoff=0.6)]
    return found or difflib.get_close_matches(name, known, n=2, cutoff=0.8)


def _siblings(name: str, known: Sequence[str]) -> dict[str, str]:
    """Map last components to full names of the keys in the name's group; of all keys if there is no such group."""
    parent = name.rpartition(".")[0]
    prefix = f"{parent}." if parent and any(k.startswith(f"{parent}.") for k in known) else ""
    lasts = dict.fromkeys(k.removeprefix(prefix).partition(".")[0] for k in known if k.startswith(prefix))
    return {last: f"{prefix}{last}" for last in lasts}
