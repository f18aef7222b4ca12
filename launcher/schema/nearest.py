"""What a misspelt name was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def unknown_key(name: str, known: Sequence[str]) -> str:
    """The message for a key or a choice that does not exist, with the nearest that do."""
    close = nearest(name, known)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(dict.fromkeys(known))}"
    return f"{name} is not a known key: {hint}"


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """At most two names like this one, by their last components first: equal, alike in its group, alike in any."""
    parent, _, last = name.rpartition(".")
    equal = [k for k in known if k.rpartition(".")[2] == last]
    if equal:
        return difflib.get_close_matches(name, equal, n=2, cutoff=0.0)
    same_group = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    found = [same_group[match] for match in difflib.get_close_matches(last, same_group, n=2, cutoff=0.6)]
    return found or difflib.get_close_matches(name, known, n=2, cutoff=0.6)
