"""All errors that a user may see.

    LauncherError            exit code 1
    ├── InputError           exit code 2: what the user gave is wrong
    ├── NoLayoutFits         exit code 3: the request is sound, but no layout satisfies it
    └── JobFailed            exit code 1: a started job failed

Each carries one message: the rule, what was found, what is allowed, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST = 20  # problems that are named
LONGEST = 3000  # characters of one problem


class LauncherError(Exception):
    """Base of all errors that are reported without a traceback."""

    exit_code = 1


class InputError(LauncherError):
    """The user's input is wrong; `problems` has all that were found, up to MOST."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        found = (problems,) if isinstance(problems, str) else tuple(problems)
        self.problems = tuple(_readable(text) for text in found[:MOST])
        if len(found) > MOST:
            self.problems += (f"and {len(found) - MOST} more",)
        super().__init__("\n".join(self.problems))


def _readable(text: str) -> str:
    """Leave out the middle of a message that quotes too much of what it refuses: what to do is at its end."""
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST * 2 // 3]} […] {text[-LONGEST // 3 :]}"


class NoLayoutFits(LauncherError):
    """No layout satisfies the request; the message names the nearest miss and what would help."""

    exit_code = 3


class JobFailed(LauncherError):
    """A started job failed."""

    exit_code = 1
