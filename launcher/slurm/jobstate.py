"""Slurm's state of the job that this process runs in."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from launcher.errors import JobFailed
from launcher.slurm.command import SlurmUnreachable, ask

RETRY_EVERY_S = 10.0
RETRY_FOR_S = 120.0  # time for slurmctld to restart


@dataclass(frozen=True)
class JobState:
    """Slurm's state of the job, and whether preemption has begun; `UNKNOWN` if Slurm cannot be asked."""

    state: str = "UNKNOWN"
    preempted: bool = False

    @property
    def ending(self) -> bool:
        """Whether Slurm is ending the job: cancelled, requeued, over its time limit."""
        return self.state not in ("RUNNING", "UNKNOWN")


def job_state(job_id: str) -> JobState:
    """Return the state of a job. During the grace time of a preemption it is still RUNNING, but has a PreemptTime."""
    try:
        said = ask(("scontrol", "show", "job", "-o", job_id)).out
    except SlurmUnreachable:
        return JobState()
    state = re.search(r"\bJobState=(\w+)", said)
    preempted = re.search(r"\bPreemptTime=\d", said) is not None
    return JobState(state[1] if state else "UNKNOWN", preempted or (state is not None and state[1] == "PREEMPTED"))


def requeue(job_id: str, *, notify: Callable[[str], None]) -> None:
    """Requeue the job; retry while slurmctld does not answer. Raises JobFailed if it is refused."""
    until = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            answer = ask(("scontrol", "requeue", job_id))
            break
        except SlurmUnreachable as error:
            if time.monotonic() > until:
                raise JobFailed(f"the job cannot be requeued: {error}") from error
            notify(f"not requeued yet: {error}")
            time.sleep(RETRY_EVERY_S)
    if answer.code:
        raise JobFailed(f"scontrol requeue {job_id} failed: {answer.reason}")
