"""Keys without a group that another command reads: refused, for here they would change nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from launcher.commands.table import COMMANDS, RUN_GROUPS
from launcher.errors import InputError


def check_taken(command: str, overrides: Sequence[str]) -> None:
    """Raise InputError for every word that sets a key of other commands alone."""
    entry = COMMANDS[command]
    if not entry.groups:  # it knows its few words itself
        return
    own = {*entry.takes, *(word.partition("=")[0] for word in entry.options)}
    groups = set(RUN_GROUPS) - {*entry.groups}
    problems = []
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0]
        others = [f"`launcher {name}`" for name, other in COMMANDS.items() if key in other.takes]
        if others and key not in own:
            problems.append(f"{word}: `launcher {command}` does not read {key}, {_listed(others)}: leave it out")
        elif (group := re.split(r"[.@/]", key)[0]) in groups:
            problems.append(f"{word}: `launcher {command}` does not read {group}: leave it out")
    if problems:
        raise InputError(problems)


def _listed(others: Sequence[str]) -> str:
    *most, last = others
    return f"{', '.join(most)} and {last} do" if most else f"{last} does"
