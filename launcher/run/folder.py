"""The run folder: all names in it. Each run has one folder with everything about it.

owner.json       who works in it (owner.py)                     launch.json    how ranks are started (agent/launch.py)
plan.json        the plan, never changed (planner/record.py)
plan-start.json  with the options and hosts of the current start     plan-round-N.json   for the nodes of round N
config.yaml      the composed configuration, for people         nodes/         the state of each node's agent
ledger.jsonl     times of events (ledger.py)                    metrics.jsonl  one line per step (metrics.py)
result.json      the recipe's result (result.py, rates.py)      checkpoints/   (checkpoints.py)
logs/            of ranks, and of the batch job                 traces/        of torch's profiler
spans/         what ranks did in some steps (spans.py)
wandb/ tensorboard/ mlruns/ jsonl/   of the trackers that keep files
wandb-offline.json   that wandb's run is offline, and wandb's variables (wandb_folders.py)
report.html      the page of `launcher report`                  data/          token files that the recipe made
provenance.json  by what and from which code it was started (provenance.py), with code.diff
login.json       on which login node the run is that was submitted from there (commands/login.py)
code/            the copy of the code that it runs from, if any (snapshot.py)  code-files.txt  what was copied
code-start.txt   which start over ssh has put it there (ssh/keeper.py)
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import InputError

_RANK_LOG = re.compile(r"rank-(\d+)\.log")
_NODE = re.compile(r"node-(\d+)\.json")
RUNS = Path("runs")  # where the folders of runs are that were given none
PLAN_NAME = "plan.json"  # also in an export
SLURM_LOG, ARRAY_LOG = "slurm-%j.out", "slurm-%A_%a.out"  # in sbatch's patterns


@dataclass(frozen=True)
class RunFolder:
    """Names inside a run folder."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / PLAN_NAME

    @property
    def plan_of_start(self) -> Path:
        """The plan with the options and hosts of the current start; absent if that is plan.json."""
        return self.path / "plan-start.json"

    @property
    def present_plan(self) -> Path:
        """The plan in force: that of the current or last start."""
        return self.plan_of_start if self.plan_of_start.is_file() else self.plan

    def plan_of_round(self, number: int) -> Path:
        return self.path / f"plan-round-{number}.json"

    @property
    def owner(self) -> Path:
        return self.path / "owner.json"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def code_diff(self) -> Path:
        """What differed from the commit that the run was started from; absent where nothing did."""
        return self.path / "code.diff"

    @property
    def code(self) -> Path:
        """The copy of the code that the run works in; absent where it works in the original."""
        return self.path / "code"

    @property
    def login(self) -> Path:
        """Where a run is that was submitted from a login node, by `launch.login`."""
        return self.path / "login.json"

    @property
    def code_files(self) -> Path:
        return self.path / "code-files.txt"

    @property
    def code_start(self) -> Path:
        """Which start over ssh has put its code here; hosts see by it whether they share this folder."""
        return self.path / "code-start.txt"

    @property
    def launch(self) -> Path:
        return self.path / "launch.json"

    @property
    def setup(self) -> Path:
        """The file that the batch script sources; slurm/train.sbatch also names it."""
        return self.path / "setup.sh"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"

    def rank_error(self, rank: int, *, start: int) -> Path:
        """The file in which torch's `record` describes the exception that ended a rank."""
        return self.logs / f"rank-{rank}-error-{start}.json"

    def rank_logs(self) -> dict[int, Path]:
        """The existing logs, by rank; a pipe or a device is none, for it may have no end."""
        return {rank: path for rank, path in _numbered(self.logs, _RANK_LOG).items() if path.is_file()}

    def job_log(self, job_id: str) -> Path:
        """The file for the output of the batch job."""
        return self.logs / SLURM_LOG.replace("%j", job_id)

    def job_logs(self) -> list[Path]:
        """The existing logs of all batch jobs of this folder."""
        return sorted(self.logs.glob(SLURM_LOG.replace("%j", "*")))

    @property
    def guard_log(self) -> Path:
        return self.logs / "guard.out"

    @property
    def step_log(self) -> Path:
        return self.logs / "step.out"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def trials(self) -> Path:
        """What the recipe tune has found so far."""
        return self.path / "trials.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def wandb_offline(self) -> Path:
        """That metrics are to become an offline run of wandb, with wandb's variables."""
        return self.path / "wandb-offline.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def mlflow(self) -> Path:
        return self.path / "mlruns"

    @property
    def json_lines(self) -> Path:
        return self.path / "jsonl"

    @property
    def deepspeed_config(self) -> Path:
        return self.path / "deepspeed.json"

    @property
    def nodes(self) -> Path:
        return self.path / "nodes"

    def node_state(self, node: int) -> Path:
        return self.nodes / f"node-{node}.json"

    def node_states(self) -> dict[int, Path]:
        """The existing state files of agents, by node."""
        return _numbered(self.nodes, _NODE)

    def data(self, name: str) -> Path:
        """A token file that the run created."""
        return self.path / "data" / f"{name}.tokens"

    def trace(self, *, step: int, rank: int) -> Path:
        return self.path / "traces" / f"step-{step:06d}-rank-{rank:05d}.json"

    @property
    def spans(self) -> Path:
        return self.path / "spans"

    def span_file(self, *, step: int, rank: int) -> Path:
        return self.spans / f"step-{step:06d}-rank-{rank:05d}.json"

    def inner(self, name: str) -> RunFolder:
        """The folder of an auxiliary run, such as a measurement before the start."""
        return RunFolder(self.path / name)


@dataclass(frozen=True)
class SweepFolder:
    """Names inside the folder of a sweep: the runs 0, 1, …, and one table of them."""

    path: Path

    @property
    def members(self) -> Path:
        """The file that maps runs to their overrides."""
        return self.path / "sweep.json"

    @property
    def table(self) -> Path:
        return self.path / "results.txt"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    def run(self, index: int) -> RunFolder:
        return RunFolder(self.path / str(index))

    def job_log(self, array: str, task: str) -> Path:
        """The file for the output of one task of the job array."""
        return RunFolder(self.path).logs / ARRAY_LOG.replace("%A", array).replace("%a", task)


def plan_file(path: Path) -> Path:
    """Return the plan file that a user named: a file, or the one in force in a folder.

    Raises InputError for the folder of a sweep.
    """
    return one_run(path).present_plan if path.is_dir() else path


def one_run(path: Path) -> RunFolder:
    """Return a run folder that a user named; raises InputError for that of a sweep, which has no plan and no steps."""
    if SweepFolder(path).members.is_file() and not RunFolder(path).plan.is_file():
        raise InputError(
            f"{path} is the folder of a sweep, not of one run: name a run in it, as {path / '0'}; "
            f"`launcher status {path}` lists them"
        )
    return RunFolder(path)


def in_utc(seconds: float | None = None) -> str:
    """Format a time (seconds since 1970; None: now) for people."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):  # of a damaged record
        return "an unknown time"


def default_name(name: str, *, now: float | None = None) -> str:
    """Return a name such as `gpt-20250131-235959`: the kind of run and its start time (UTC)."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}"


def create_run_folder(path: Path) -> RunFolder:
    """Make the folder and its logs folder; it may exist already (a resumed run).

    Raises InputError if it cannot be created or written.
    """
    folder = RunFolder(path)
    try:
        folder.logs.mkdir(parents=True, exist_ok=True)
        folder.nodes.mkdir(exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write the run folder {path} ({error.strerror}): choose another with run_dir=FOLDER"
        ) from error
    return folder


def new_run_folder(name: str, *, parent: Path = RUNS) -> RunFolder:
    """Create a new run folder: two runs in the same second get two folders."""
    base = parent / default_name(name)
    for attempt in range(1000):
        path = base if attempt == 0 else base.with_name(f"{base.name}-{attempt + 1}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(
                f"cannot make the run folder {path} ({error.strerror}): give one with run_dir=FOLDER"
            ) from error
        return create_run_folder(path)
    raise InputError(f"{base} and 999 folders after it exist already: give one with run_dir=FOLDER")


def _numbered(folder: Path, name: re.Pattern[str]) -> dict[int, Path]:
    """Return the files of a folder that match a pattern, by the number in their names, in order."""
    found = {int(match[1]): path for path in folder.glob("*") if (match := name.fullmatch(path.name))}
    return dict(sorted(found.items()))
