"""Slurm's state of the job that this process runs in."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.cluster.hostlist import compress_hostlist, expand_hostlist
from launcher.errors import InputError, JobFailed
from launcher.slurm.command import SlurmUnreachable, ask
from launcher.text import whole_number

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


def requeue(job_id: str, *, without: Sequence[str] = (), notify: Callable[[str], None]) -> None:
    """Requeue the job, and keep it off the hosts `without`; retry while slurmctld does not answer.

    It may get these hosts again where it asks for them by name, where its partition has no others, and where Slurm
    refuses. Raises JobFailed if the requeue is refused.
    """
    until = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            # All that can be asked before: within KillWait of the requeue Slurm kills this process.
            exclusion = _exclusion(job_id, without) if without else None
            answer = ask(("scontrol", "requeue", job_id))
            break
        except SlurmUnreachable as error:
            if time.monotonic() > until:
                raise JobFailed(f"the job cannot be requeued: {error}") from error
            notify(f"not requeued yet: {error}")
            time.sleep(RETRY_EVERY_S)
    if answer.code:
        raise JobFailed(f"scontrol requeue {job_id} failed: {answer.reason}")
    if exclusion:
        _exclude(exclusion, without, notify=notify)


@dataclass(frozen=True)
class Exclusion:
    """How a waiting job is kept off nodes; `problem`: why it cannot be."""

    job_id: str
    nodelist: str
    problem: str | None


def _exclusion(job_id: str, hosts: Sequence[str]) -> Exclusion:
    """Return how to exclude these hosts in addition to those that the job excludes already."""
    record = ask(("scontrol", "show", "job", "-o", job_id)).out
    try:
        excluded = sorted({*_hosts(record, "ExcNodeList"), *hosts})
        return Exclusion(job_id, compress_hostlist(excluded), _why_not(record, hosts, excluded))
    except SlurmUnreachable:
        raise
    except InputError as error:  # a list of hosts that cannot be read
        return Exclusion(job_id, "", str(error))


def _exclude(exclusion: Exclusion, hosts: Sequence[str], *, notify: Callable[[str], None]) -> None:
    job_id, problem = exclusion.job_id, exclusion.problem
    update = ("scontrol", "update", f"jobid={job_id}", f"excnodelist={exclusion.nodelist}")
    try:
        if problem is None and (answer := ask(update)).code:  # which Slurm refuses while the job runs
            problem = answer.reason
    except InputError as error:
        problem = str(error)
    named = ", ".join(hosts)
    if problem:
        notify(f"the job may get {named} again: {problem}")
    else:
        notify(f"the job waits for nodes other than {named}; `scontrol update jobid={job_id} excnodelist=` allows all")


def _hosts(record: str, field: str) -> tuple[str, ...]:
    """Return the hosts in a field of scontrol's record of a job."""
    match = re.search(rf"\b{field}=(\S+)", record)
    return expand_hostlist(match[1]) if match and match[1] != "(null)" else ()


def _why_not(record: str, hosts: Sequence[str], excluded: Sequence[str]) -> str | None:
    """Return why a job cannot go on without these hosts."""
    if asked := set(hosts) & set(_hosts(record, "ReqNodeList")):
        return f"it asks for {', '.join(sorted(asked))} by name"
    partition, needed = (re.search(rf"\b{name}=(\w+)", record) for name in ("Partition", "NumNodes"))
    all_nodes = ask(("sinfo", "-h", "-N", "-o", "%N", *(("-p", partition[1]) if partition else ()))).out.split()
    if needed and len(set(all_nodes) - set(excluded)) < (whole_number(needed[1]) or 0):
        return "its partition has not enough others"
    return None
