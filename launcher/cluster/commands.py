"""Runs the site's own commands (nvidia-smi, scontrol, sinfo …): the only file under cluster/ that starts a process."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from launcher import env
from launcher.capture import capture
from launcher.text import in_brief

# Filters and formats of a user's own look-ups, which would change what squeue, sinfo and sacct print for us.
_LOOK_UPS = re.compile(r"(SQUEUE|SINFO|SACCT|SCONTROL|SPRIO)_\w+|SLURM_(TIME_FORMAT|BITSTR_LEN)")


@dataclass(frozen=True)
class Output:
    """The standard output of a command; `text` is None if there is none to read, and `problem` says why.

    `installed` is False where the machine has no such command at all.
    """

    text: str | None
    problem: str = ""
    installed: bool = True


Runner = Callable[[tuple[str, ...]], Output]


def query_environment() -> dict[str, str]:
    """This process's environment without the user's own filters and formats of Slurm's look-ups."""
    return {name: value for name, value in env.environment().items() if not _LOOK_UPS.fullmatch(name)}


def run(argv: tuple[str, ...], *, timeout_s: float = 20.0) -> Output:
    """Run a command without a shell. A missing command or a failure is an Output without text, never an exception."""
    if shutil.which(argv[0]) is None:
        return Output(None, f"there is no {argv[0]} on this machine", installed=False)
    try:
        done = capture(argv, environment=query_environment(), timeout_s=timeout_s)
    except subprocess.TimeoutExpired:
        return Output(None, f"{' '.join(argv)} did not answer within {timeout_s:g} s")
    except OSError as error:
        return Output(None, f"{argv[0]} cannot be run: {error.strerror}")
    if done.code:
        said = in_brief(done.err) or in_brief(done.out) or "nothing"
        return Output(None, f"{' '.join(argv)} ended with status {done.code}: {said}")
    return Output(done.out)
