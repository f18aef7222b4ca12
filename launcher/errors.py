"""All errors that a user may see.

    LauncherError            exit code 1
    ├── InputError           exit code 2: what the user gave is wrong
    ├── NoLayoutFits         exit code 3: the request is sound, but no layout satisfies it
    └── JobFailed            exit code 1: a started job failed

Each carries one message: the rule, what was found, what is allowed, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class LauncherError(Exception):
    """Base of all errors that are reported without a traceback."""

    exit_code = 1


class InputError(LauncherError):
    """The user's input is wrong; `problems` has all that were found, not just the first."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class NoLayoutFits(LauncherError):
    """No layout satisfies the request; the message names the nearest miss and what would help."""

    exit_code = 3


class JobFailed(LauncherError):
    """A started job failed."""

    exit_code = 1
