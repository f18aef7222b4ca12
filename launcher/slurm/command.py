"""Runs Slurm's commands: the only file under slurm/ that starts one and waits for its answer."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.capture import capture
from launcher.cluster.commands import query_environment
from launcher.errors import InputError
from launcher.text import printable

TIMEOUT_S = 60.0
LONGEST_REASON = 1000
# What Slurm's commands print if no daemon answers: slurm_errno.c, slurm 22.05 to 24.11.
NO_CONFIGURATION = re.compile(r"configuration source|DNS SRV|Unable to (stat|open|process) .*slurm\.conf", re.I)
NO_CONTROLLER = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted|Connection (refused|timed out)"
    r"|connect failure|Unable to establish control|Transport endpoint|communication connection failure"
    r"|No route to host",
    re.I,
)
NO_AUTHENTICATION = re.compile(r"munge|authentication credential|Protocol authentication error", re.I)


class SlurmUnreachable(InputError):
    """Slurm does not answer: the request was neither refused nor unknown, it could not be sent."""


@dataclass(frozen=True)
class Answer:
    """The output and exit code of a command."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The error of a failed command, on one line, without the command's name."""
        said = (self.err.strip() or self.out.strip() or f"exit code {self.code}").splitlines()
        words = dict.fromkeys(re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in said)
        return printable("; ".join(words), longest=LONGEST_REASON)


def ask(argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Answer:
    """Run a Slurm command without a shell; raises SlurmUnreachable if there is no Slurm or it does not answer."""
    try:
        variables = query_environment() if environment is None else environment
        done = capture(argv, environment=variables, timeout_s=TIMEOUT_S)
    except FileNotFoundError as error:
        raise SlurmUnreachable(
            f"there is no {argv[0]} on this machine: run this on a login node of the cluster"
        ) from error
    except OSError as error:
        raise SlurmUnreachable(f"{argv[0]} cannot be run ({error.strerror})") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnreachable(
            f"{argv[0]} had no answer within {TIMEOUT_S:.0f} s: is slurmctld up (scontrol ping)?"
        ) from error
    answer = Answer(done.code, done.out, done.err)
    if answer.code and (why := unreachable(answer.reason)):
        raise SlurmUnreachable(f"{argv[0]}: {why}")
    return answer


def unreachable(reason: str) -> str | None:
    """Return why Slurm could not answer, and what to do; None if the error is an answer."""
    if NO_CONFIGURATION.search(reason):
        return f"this machine knows no cluster ({reason}): run this on a login node, or set SLURM_CONF"
    if NO_CONTROLLER.search(reason):
        return f"slurmctld does not answer ({reason}): try again later, `scontrol ping` says when it does"
    if NO_AUTHENTICATION.search(reason):
        return f"Slurm does not know who asks ({reason}): run this on a login node, where munge runs"
    return None
