"""The parsed command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Invocation:
    """The command line after the command's name."""

    overrides: tuple[str, ...] = ()
    multirun: bool = False
    rest: tuple[str, ...] = ()  # everything after --: arguments of the user's own script
