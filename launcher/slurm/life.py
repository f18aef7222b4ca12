"""A submitted run from outside: status, logs, cancel. Works without Slurm accounting."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.agent.launch import is_submitted
from launcher.errors import InputError, JobFailed
from launcher.files import tail
from launcher.planner import read_plan
from launcher.run.checkpoints import newest_good
from launcher.run.folder import RunFolder, SweepFolder
from launcher.run.owner import mark_cancelled, read_owner
from launcher.run.progress import Progress, progress
from launcher.run.result import is_finished
from launcher.slurm.command import SlurmUnreachable, ask
from launcher.slurm.progress import starts
from launcher.text import printable, whole_number

# Columns of squeue by fixed width: none contains a user's text, so no job name can forge one.
COLUMNS = {
    "State": 24,
    "Reason": 40,
    "RestartCnt": 12,
    "exit_code": 12,
    "NumNodes": 12,
    "TimeUsed": 24,
    "TimeLeft": 24,
    "StartTime": 24,
}
# Final states: https://slurm.schedmd.com/squeue.html#lbAG
ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
})  # fmt: skip
EARLIER = frozenset({"RESIZING", "REQUEUED"})  # sacct keeps a record of the job before it lost a node or was requeued
UNKNOWN = "UNKNOWN"  # Slurm has forgotten the job
UNREACHABLE = "UNREACHABLE"  # Slurm does not answer
NUMBER = re.compile(r"[0-9]{1,9}")
POLL_S, ASK_EVERY_S = 0.5, 3.0
LINE_LENGTH = 160


@dataclass(frozen=True, kw_only=True)
class JobStatus(Progress):
    """The status of a job by Slurm and its run folder, with its progress. `state` is Slurm's, or `UNKNOWN`."""

    job_id: str
    state: str
    reason: str = ""
    restarts: int = 0
    exit_code: str = ""
    num_nodes: int = 0
    time_used: str = ""
    time_left: str = ""
    start_time: str = ""
    source: str = "squeue"
    starts: int = 0
    checkpoint_step: int | None = None
    checkpoint: str = ""
    finished: bool = False
    last_words: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def held(self) -> bool:
        """Whether it waits for somebody to release it: nothing else starts it."""
        return self.state in ("PENDING", "SPECIAL_EXIT") and re.search(r"held", self.reason, re.I) is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for output=json."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"job {self.job_id}: {self.state}" + (f" ({self.reason})" if self.reason not in ("", "None") else "")]
        if self.time_used:
            left = (
                "without a time limit" if self.time_left == "UNLIMITED" else f"{self.time_left} left of its time limit"
            )
            lines.append(f"  running {self.time_used} on {self.num_nodes} nodes, {left}")
        lines += [f"  {_held(self)}"] if self.held else []
        lines.append(f"  starts: {max(self.starts, 1)}, requeued {self.restarts} times")
        reached = super().__str__()
        if self.step is not None or (self.state == "RUNNING" and reached):
            lines.append(f"  {reached}" + (", complete" if self.finished else ""))
        lines += [f"  {self.checkpoint}"] if self.checkpoint else []
        return "\n".join([*lines, *(f"  | {line}" for line in self.last_words)])


@dataclass(frozen=True)
class SubmittedRun:
    """A run with its folder, its job id, or both."""

    job_id: str
    folder: Path | None

    @classmethod
    def find(cls, name: str) -> SubmittedRun:
        """Find a run folder or a job id (`17`, `17_2`); raises InputError for anything else."""
        folder = Path(name)
        if is_submitted(folder):
            owner = read_owner(RunFolder(folder))
            if owner is None or owner.job_id is None:
                raise InputError(
                    f"{name} was prepared but not submitted by the launcher (dry_run=true): a job submitted by hand "
                    "is known once it has started; before that, give its job id"
                )
            return cls(owner.job_id, folder)
        if re.fullmatch(r"[0-9]{1,18}(_[0-9]{1,18})?", name):
            return cls(name, _folder_of(name))
        raise InputError(f"{name} is neither the folder of a submitted run nor a job id: give one of the two")


def status(run: SubmittedRun) -> JobStatus:
    """Return the job's status: from squeue, from sacct once squeue has forgotten the job (MinJobAge), from its folder.

    Raises InputError if none of them knows the job, SlurmUnreachable if only Slurm could and does not answer.
    """
    try:
        seen = _from_squeue(run.job_id) or _from_sacct(run.job_id)
    except SlurmUnreachable as error:
        if run.folder is None:
            raise
        seen = {"state": UNREACHABLE, "reason": str(error), "source": "run folder"}
    if seen is None and run.folder is None:
        raise InputError(_unknown(run))
    seen = seen or {"state": UNKNOWN, "reason": "Slurm has forgotten it", "source": "run folder"}
    return JobStatus(job_id=run.job_id, **seen, **(_from_folder(run.folder) if run.folder else {}))


def jobs_of_user() -> dict[str, tuple[str, Path]]:
    """The jobs of this user that Slurm knows: id → state, and the folder that each was submitted with."""
    answer = ask(("squeue", "-h", "--me", "-r", "-t", "all", "-o", "%i|%T|%Z"))
    if answer.code:
        raise InputError(f"squeue cannot say anything of your jobs ({answer.reason})")
    rows = [line.split("|", 2) for line in answer.out.splitlines()]
    return {row[0].strip(): (row[1].strip(), Path(row[2])) for row in rows if len(row) == 3}


def has_ended(job_id: str) -> bool | None:
    """Return whether a job has ended or is forgotten by Slurm; None if Slurm cannot be asked."""
    try:
        answer = ask(("squeue", "-h", "-t", "all", "-j", job_id, "-o", "%T"))
    except InputError:
        return None
    if answer.code:
        return True if "invalid job id" in answer.reason.lower() else None
    return set(answer.out.split()) <= ENDED


def cancel(run: SubmittedRun) -> str:
    """Cancel a running or waiting job; return a message. Raises InputError if Slurm refuses."""
    before = status(run)
    if before.state == UNKNOWN:
        raise InputError(_unknown(run))
    if before.state == UNREACHABLE:
        raise InputError(f"job {run.job_id} cannot be cancelled now: {before.reason}")
    if before.ended:
        return f"job {run.job_id} has ended already: {before.state}"
    unwritten = _mark_cancelled(run)
    answer = ask(("scancel", run.job_id))
    if answer.code and (now := status(run)).ended:
        return f"job {run.job_id} has ended already: {now.state}"
    if answer.code:
        raise InputError(f"scancel {run.job_id} was refused: {answer.reason}")
    return f"job {run.job_id} is being cancelled{unwritten}"


def _mark_cancelled(run: SubmittedRun) -> str:
    """Record in the run folder that the job is cancelled; return what to add to the answer if that is impossible."""
    try:
        if run.folder and (owner := read_owner(RunFolder(run.folder))) and owner.job_id == run.job_id:
            mark_cancelled(RunFolder(run.folder), owner)
    except OSError as error:
        return f"; {run.folder} cannot be written ({error.strerror}): its owner.json does not say so"
    return ""


def log_file(run: SubmittedRun, *, rank: int | None) -> Path:
    """Return the log of one rank, or of the whole job (all starts in one file)."""
    if run.folder is None:
        raise InputError(f"the run folder of job {run.job_id} is not known: give the folder itself")
    folder = RunFolder(run.folder)
    if rank is not None:
        world_size = read_plan(folder.present_plan).layout.world_size
        if rank >= world_size:
            raise InputError(f"rank={rank} is not a rank of this run: there are 0 to {world_size - 1}")
        return folder.rank_log(rank)
    array, _, task = run.job_id.partition("_")
    return SweepFolder(run.folder.parent).job_log(array, task) if task else folder.job_log(run.job_id)


def follow(
    path: Path, *, ended: Callable[[], bool], poll_s: float = POLL_S, ask_every_s: float = ASK_EVERY_S
) -> Iterator[bytes]:
    """Yield the log from its beginning and then what is added, until `ended` and nothing more arrives.

    `ended` may ask slurmctld, so it is called at most every `ask_every_s`. An empty piece comes with every look, so
    that the caller can end it where nobody reads any more.
    """
    position, ask_at = 0, 0.0
    while True:
        last = False
        if (now := time.monotonic()) >= ask_at:
            last, ask_at = ended(), now + ask_every_s  # before reading, so that nothing written before is lost
        yield b""
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                while piece := file.read(65536):
                    position += len(piece)
                    yield piece
        if last:
            return
        time.sleep(poll_s)


def read_log(run: SubmittedRun, *, rank: int | None, following: bool) -> Iterator[bytes]:
    """Yield a log, with `following` until the job ends; raises JobFailed if there is none."""
    path = log_file(run, rank=rank)
    if not following:
        if not path.exists():
            raise JobFailed(f"there is no log {path} yet: the job is {status(run).state}")
        yield path.read_bytes()
        return
    yield from follow(path, ended=lambda: status(run).state in ENDED | {UNKNOWN})


def _held(job: JobStatus) -> str:
    """Say why a job is held, and what makes it go on. The reasons are those of Slurm 22.05."""
    release = f"`scontrol release {job.job_id}` lets it start"
    if "launch failed" in job.reason:  # https://slurm.schedmd.com/prolog_epilog.html: and drains the node
        return f"held, since a node failed to start it (a Prolog that fails; `sinfo -R` names the node): {release}"
    if "Admin" in job.reason:
        return f"held by an administrator: {release}, once that one has agreed"
    return f"held: {release}"


def _unknown(run: SubmittedRun) -> str:
    return f"Slurm knows no job {run.job_id} (any more): see squeue, or sacct -S for jobs of earlier days"


def _from_squeue(job_id: str) -> dict[str, Any] | None:
    columns = ",".join(f"{name}:{width}" for name, width in COLUMNS.items())
    answer = ask(("squeue", "-h", "-t", "all", "-j", job_id, "-O", columns))
    lines = [line for line in answer.out.splitlines() if line.strip()]
    if answer.code and "invalid job id" not in answer.reason.lower():
        raise SlurmUnreachable(f"squeue cannot say anything of job {job_id} ({answer.reason})")
    if answer.code or not lines:
        return None
    values = _representative([_columns(line) for line in lines])
    running = values["State"] == "RUNNING"
    return {
        "state": values["State"],
        "reason": values["Reason"],
        "restarts": whole_number(values["RestartCnt"]) or 0,
        "exit_code": values["exit_code"],
        "num_nodes": whole_number(values["NumNodes"]) or 0,
        "time_used": values["TimeUsed"] if running else "",
        "time_left": values["TimeLeft"] if running else "",
        "start_time": values["StartTime"],
    }


def ended_members(job_id: str) -> dict[int, str]:
    """Map tasks of an array to their states, for ended ones that Slurm still knows."""
    try:
        queue = ask(("squeue", "-h", "-r", "-t", "all", "-j", job_id, "-O", "ArrayTaskID:16,State:24"))
        accounts = ask(("sacct", "-X", "-n", "-P", "-j", job_id, "-o", "JobID,State"))
    except SlurmUnreachable:
        return {}
    rows = [(line[:16].strip(), line[16:].strip()) for line in queue.out.splitlines()]
    rows += [re.sub(r"^\d+_", "", line).partition("|")[::2] for line in accounts.out.splitlines()]
    states = {task: state.split()[0] for task, state in reversed(rows) if state}  # squeue is more current than sacct
    return {int(task): state for task, state in states.items() if NUMBER.fullmatch(task) and state in ENDED}


def _columns(line: str) -> dict[str, str]:
    values = {}
    for name, width in COLUMNS.items():
        values[name], line = printable(line[:width].strip()), line[width:]
    return values


def _representative(rows: list[dict[str, str]]) -> dict[str, str]:
    """Return the row that represents a job: of an array a running task, else a waiting one, else a failed one."""
    return min(rows, key=lambda row: (row["State"] in ENDED, row["State"] == "PENDING", row["State"] == "COMPLETED"))


def _from_sacct(job_id: str) -> dict[str, Any] | None:
    answer = ask(("sacct", "-X", "-n", "-P", "-j", job_id, "-o", "State,ExitCode,NNodes,Start"))
    rows = [line.split("|") for line in answer.out.splitlines() if line]
    rows = [row for row in rows if row[0] not in EARLIER]
    if answer.code or not rows or any(len(row) != 4 for row in rows):
        return None
    state, exit_code, nodes, start = min(rows, key=lambda row: row[0] == "COMPLETED")
    if not state.strip():
        return None
    return {
        "state": state.split()[0],  # "CANCELLED by 1000"
        "exit_code": exit_code,
        "num_nodes": whole_number(nodes) or 0,
        "start_time": start,
        "source": "sacct",
    }


def _from_folder(path: Path) -> dict[str, Any]:
    folder = RunFolder(path)
    newest = newest_good(folder.checkpoints)
    log = max(folder.job_logs(), key=lambda log: log.stat().st_mtime, default=None)
    return {
        "starts": len(starts(folder)),
        **asdict(progress(folder)),
        "checkpoint_step": newest.step,
        "checkpoint": str(newest),
        "finished": is_finished(folder.result),
        "last_words": tuple(line[:LINE_LENGTH] for line in tail(log, num_lines=3)) if log else (),
    }


def _folder_of(job_id: str) -> Path | None:
    """Return the run folder of a job that Slurm still knows: the working folder of its submission."""
    queue = ("squeue", "-h", "-t", "all", "-j", job_id, "-o", "%Z")
    accounts = ("sacct", "-X", "-n", "-P", "-j", job_id, "-o", "WorkDir")
    for command in (queue, accounts):
        folder = Path((ask(command).out.splitlines() or [""])[0])
        if is_submitted(folder):
            return folder
    return None
