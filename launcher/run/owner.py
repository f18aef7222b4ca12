"""owner.json: the only owner of a run folder. It stays after the work has ended, with the outcome.

The owner is a process of one host, or a batch job. Readers check whether it still exists: a process by its id, start
time and boot id, a job by asking Slurm. So the lock of a killed run is recognised as stale.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import inf, nextafter
from pathlib import Path

from launcher import process
from launcher.errors import InputError
from launcher.files import read_json, write_json
from launcher.run.folder import RunFolder, in_utc
from launcher.schema import from_plain, to_plain

_SUBMITTING_S, _POLL_S = 60.0, 0.2
_REMEDY = "remove it if nothing runs in the folder"
_JOB_ID = re.compile(r"[0-9]{1,18}(_[0-9]{1,18})?")  # 17, or 17_2 of an array
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
JobEnded = Callable[[str], bool | None]  # whether a batch job has ended; None: Slurm cannot be asked


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process (`pid`, started at `started_at` CLOCK_BOOTTIME seconds after the boot `boot_id` of `host`), or the
    batch job `job_id` that this process submitted or runs in.

    since: seconds since 1970.
    submitting: the process is about to submit a job and does not know its id yet.
    ended: how the work ended, empty while it continues. cancelled: when `launcher cancel` was called.
    """

    host: str
    pid: int
    started_at: float
    boot_id: str
    since: float
    job_id: str | None = None
    submitting: bool = False
    ended: str = ""
    cancelled: float | None = None

    def __str__(self) -> str:
        if self.job_id is not None:
            return f"job {self.job_id}"
        return f"process {self.pid} on {self.host}"

    def same(self, other: Owner) -> bool:
        """Return whether both are the same owner: a job may start more than once, a process may claim again."""
        if self.job_id is not None or other.job_id is not None:
            return self.job_id == other.job_id
        mine, others = ((o.host, o.boot_id, o.pid, o.started_at) for o in (self, other))
        return mine == others

    def is_there(self, job_ended: JobEnded | None = None) -> bool | None:
        """Return whether the owner still works in the folder; None if that cannot be determined from here."""
        if self.ended:
            return False
        if self.job_id is not None:
            ended = job_ended(self.job_id) if job_ended else None
            return None if ended is None else not ended
        if self.host != socket.gethostname():
            return None
        return self.boot_id == _boot_id() and process.is_alive(self.pid, started_at=self.started_at)


def this_process(*, job_id: str | None = None, submitting: bool = False) -> Owner:
    """Return this process as an owner, or the batch job `job_id` that it runs in."""
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at=process.started_at(os.getpid()),
        boot_id=_boot_id(),
        since=time.time(),
        job_id=job_id,
        submitting=submitting,
    )


def read_owner(folder: RunFolder) -> Owner | None:
    """Return the present or last owner of a folder; None if it never had one."""
    if not folder.owner.is_file():
        return None
    owner = from_plain(Owner, read_json(folder.owner, remedy=_REMEDY), "owner")
    if not owner.host.isprintable() or (owner.job_id is not None and not _JOB_ID.fullmatch(owner.job_id)):
        raise InputError(f"{folder.owner} names no host and no job of Slurm: {_REMEDY}")
    return owner


def check_free(folder: RunFolder, owner: Owner, *, job_ended: JobEnded | None = None) -> None:
    """Raise InputError if another owner works in the folder, or might."""
    present = read_owner(folder)
    if present is None or present.same(owner):
        return
    there = present.is_there(job_ended)
    if there:
        raise InputError(
            f"{folder.path} is running as {present} since {in_utc(present.since)}: wait for its end, stop it with "
            f"`launcher cancel {folder.path}`, or choose another run_dir"
        )
    if there is None:
        raise InputError(
            f"{folder.path} was left as running as {present} since {in_utc(present.since)}, which cannot be asked from "
            f"{socket.gethostname()}: choose another run_dir; if you know that it has ended, remove {folder.owner}"
        )


def claim(folder: RunFolder, owner: Owner, *, job_ended: JobEnded | None = None) -> Owner | None:
    """Become the owner of a folder, before anything else is written there; return the previous owner.

    Raises InputError if another owner is active.
    """
    with _alone(folder):
        before = read_owner(folder)
        check_free(folder, owner, job_ended=job_ended)
        _write(folder, owner)
    return before


def claim_as_job(folder: RunFolder, job_id: str, *, job_ended: JobEnded) -> Owner:
    """As `claim`, for a batch job, which may begin before `launcher submit` has recorded its id."""
    deadline = time.monotonic() + _SUBMITTING_S
    while (present := read_owner(folder)) and present.submitting and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    owner = this_process(job_id=job_id)
    if present and present.submitting:  # killed in the meantime
        withdraw(folder, present, None)
    elif present and present.same(owner):
        owner = replace(owner, cancelled=present.cancelled, since=max(owner.since, present.cancelled or 0.0))
    claim(folder, owner, job_ended=job_ended)
    return owner


def hand_to_job(folder: RunFolder, owner: Owner, job_id: str) -> None:
    """Transfer ownership to the batch job that this owner has submitted."""
    with _alone(folder):
        _write(folder, replace(owner, job_id=job_id, submitting=False, since=time.time()))


def withdraw(folder: RunFolder, owner: Owner, before: Owner | None) -> None:
    """Undo a claim: restore the previous owner."""
    with _alone(folder):
        present = read_owner(folder)
        if present is None or not present.same(owner):
            return
        if before is None:
            folder.owner.unlink()
        else:
            _write(folder, before)


def release(folder: RunFolder, owner: Owner, *, ended: str) -> None:
    """Record how this owner's work ended (a cancelled one: cancelled); do not touch a later owner."""
    with suppress(OSError, InputError), _alone(folder):  # the folder may have been deleted, the record damaged
        present = read_owner(folder)
        if present is not None and present.same(owner):
            _write(folder, replace(present, ended="cancelled" if present.cancelled else ended))


def mark_cancelled(folder: RunFolder, owner: Owner) -> Owner | None:
    """Record that `launcher cancel` asked `owner` to stop: after its claim, also where clocks differ.

    Return the owner as it was before; None if another has taken its place, which nobody asked to stop.
    """
    with _alone(folder):
        present = read_owner(folder)
        if present is None or not present.same(owner):
            return None
        if (present.cancelled or 0.0) <= present.since:  # else it was asked before: that time counts
            _write(folder, replace(present, cancelled=max(time.time(), nextafter(present.since, inf))))
        return present


def was_cancelled(folder: RunFolder) -> bool:
    """Return whether `launcher cancel` asked the present or last owner to stop."""
    present = _readable_owner(folder)
    return present is not None and present.cancelled is not None


def cancelled_since_claim(folder: RunFolder) -> bool:
    """Return whether the present or last owner was asked to stop after it had claimed the folder: nothing is to start.

    A job that starts again claims the folder again.
    """
    present = _readable_owner(folder)
    return present is not None and (present.cancelled or 0.0) > present.since


def _readable_owner(folder: RunFolder) -> Owner | None:
    """For a run that goes on, which a damaged record does not end: nobody is known to have cancelled it."""
    with suppress(OSError, InputError):
        return read_owner(folder)
    return None


def _write(folder: RunFolder, owner: Owner) -> None:
    write_json(folder.owner, to_plain(owner))


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Serialise access to owner.json over all nodes: NFS supports locks on files open for writing.

    On file systems without locks (Lustre without -o flock), two claims in the same millisecond may both succeed.
    """
    fd = os.open(folder.owner.with_name(f".{folder.owner.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
