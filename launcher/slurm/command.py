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
LONGEST_REASON, LONGEST_CAUSE = 240, 80
# What Slurm's commands print if no daemon answers: slurm_errno.c, slurm 22.05 to 24.11.
NO_CONFIGURATION = re.compile(r"configuration source|DNS SRV|Unable to (stat|open|process) .*slurm\.conf", re.I)
NO_CONTROLLER = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted|Connection (refused|timed out)"
    r"|connect failure|Unable to establish control|Transport endpoint|communication connection failure"
    r"|No route to host",
    re.I,
)
_NAME = re.compile(r"^\w+: (error: |fatal: )?")
NO_AUTHENTICATION = re.compile(r"munge|authentication credential|Protocol authentication error", re.I)


class SlurmUnreachable(InputError):
    """Slurm does not answer: the request was neither refused nor unknown, it could not be sent."""


class NoSlurm(SlurmUnreachable):
    """This machine belongs to no cluster, as far as it and its user know: there is nobody to ask."""


@dataclass(frozen=True)
class Answer:
    """The output and exit code of a command."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All that a failed command said, on one line, without the command's name."""
        lines = (self.err.strip() or self.out.strip() or f"exit code {self.code}").splitlines()
        return "; ".join(dict.fromkeys(_NAME.sub("", line.strip()) for line in lines))

    @property
    def reason(self) -> str:
        """The error of a failed command, short enough for a message: if it said too much, the last it said."""
        said = self.said
        return printable(said if len(said) <= LONGEST_REASON else said.rpartition("; ")[2], longest=LONGEST_REASON)


def ask(argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Answer:
    """Run a Slurm command without a shell; raises SlurmUnreachable if there is no Slurm or it does not answer."""
    try:
        variables = query_environment() if environment is None else environment
        done = capture(argv, environment=variables, timeout_s=TIMEOUT_S)
    except FileNotFoundError as error:
        raise NoSlurm(f"there is no {argv[0]} on this machine: run this on a login node of the cluster") from error
    except OSError as error:
        raise SlurmUnreachable(f"{argv[0]} cannot be run ({error.strerror})") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnreachable(
            f"{argv[0]} had no answer within {TIMEOUT_S:.0f} s: is slurmctld up (scontrol ping)?"
        ) from error
    answer = Answer(done.code, done.out, done.err)
    if answer.code and (why := unreachable(answer.said)):
        nobody = NO_CONFIGURATION.search(answer.said) and "SLURM_CONF" not in variables
        raise (NoSlurm if nobody else SlurmUnreachable)(f"{argv[0]}: {why}")
    return answer


def unreachable(said: str) -> str | None:
    """Return why Slurm could not answer, and what to do; None if the error is an answer."""
    last = printable(said.rpartition("; ")[2], longest=LONGEST_CAUSE)  # what the command ended for
    if NO_CONFIGURATION.search(said):
        return f"this machine knows no cluster ({last}): run this on a login node, or set SLURM_CONF"
    if NO_CONTROLLER.search(said):
        return f"slurmctld does not answer ({last}): try again later, `scontrol ping` says when it does"
    if NO_AUTHENTICATION.search(said):
        return f"Slurm does not know who asks ({last}): run this on a login node, where munge runs"
    return None
