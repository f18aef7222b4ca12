"""Runs Slurm's commands: the only file under slurm/ that starts one and waits for what it says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.cluster.commands import query_environment
from launcher.errors import InputError

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Answer:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """What a failed command complained of, on one line, without its own name before each complaint."""
        said = (self.err.strip() or self.out.strip() or f"exit code {self.code}").splitlines()
        return "; ".join(dict.fromkeys(re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in said))


def ask(argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Answer:
    """Run a Slurm command without a shell; raises InputError where there is no Slurm or it does not answer."""
    try:
        done = subprocess.run(
            list(argv),
            capture_output=True,
            text=True,
            errors="replace",
            env=query_environment() if environment is None else environment,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise InputError(f"there is no {argv[0]} on this machine: run this on a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{argv[0]} did not answer within {TIMEOUT_S:.0f} s: is slurmctld up (scontrol ping)?"
        ) from error
    return Answer(done.returncode, done.stdout, done.stderr)
