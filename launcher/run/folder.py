"""The run folder: every name in it. One folder a run, everything about it in one place.

owner.json       who works in it (owner.py)                     launch.json    how ranks are started (agent/launch.py)
plan.json        what was planned, and stays (planner/record.py)
plan-start.json  with the options and hosts of the present start     plan-round-N.json   for the nodes of round N
config.yaml      the composed configuration, for people         nodes/         what each node's agent knows
ledger.jsonl     when what happened (ledger.py)                 metrics.jsonl  one line a step (metrics.py)
result.json      what the recipe found (result.py)              checkpoints/   (checkpoints.py)
logs/            of ranks, and of the batch job                 traces/        of torch's profiler
wandb/ tensorboard/ mlruns/ jsonl/   of the trackers that keep files
report.html      the page of `launcher report`                  data/          token files that the recipe made
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
PLAN_NAME = "plan.json"  # in an export too
SLURM_LOG, ARRAY_LOG = "slurm-%j.out", "slurm-%A_%a.out"  # in sbatch's own patterns


@dataclass(frozen=True)
class RunFolder:
    """Names inside a run folder."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / PLAN_NAME

    @property
    def plan_of_start(self) -> Path:
        """The plan with the options of the present start, and the hosts that it has; absent where plan.json is that."""
        return self.path / "plan-start.json"

    @property
    def present_plan(self) -> Path:
        """The plan that is in force: of the present start, or of the last one."""
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
    def launch(self) -> Path:
        return self.path / "launch.json"

    @property
    def setup(self) -> Path:
        """What the batch script sources; slurm/train.sbatch names it too."""
        return self.path / "setup.sh"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"

    def rank_error(self, rank: int, *, start: int) -> Path:
        """What torch's `record` writes about the exception that ended a rank."""
        return self.logs / f"rank-{rank}-error-{start}.json"

    def rank_logs(self) -> dict[int, Path]:
        """The logs that there are, by rank."""
        return _numbered(self.logs, _RANK_LOG)

    def job_log(self, job_id: str) -> Path:
        """Where Slurm writes what the batch job says."""
        return self.logs / SLURM_LOG.replace("%j", job_id)

    def job_logs(self) -> list[Path]:
        """The logs of all batch jobs of this folder."""
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
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

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
        """The states that agents have written, by node."""
        return _numbered(self.nodes, _NODE)

    def data(self, name: str) -> Path:
        """A token file that the run made for itself."""
        return self.path / "data" / f"{name}.tokens"

    def trace(self, *, step: int, rank: int) -> Path:
        return self.path / "traces" / f"step-{step:06d}-rank-{rank:05d}.json"

    def inner(self, name: str) -> RunFolder:
        """The folder of a run that serves this one, as a measurement before its start."""
        return RunFolder(self.path / name)


@dataclass(frozen=True)
class SweepFolder:
    """Names inside the folder of a sweep: the runs 0, 1, …, and one table of them."""

    path: Path

    @property
    def members(self) -> Path:
        """Which overrides made which run."""
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
        """Where Slurm writes what one task of the job array says."""
        return RunFolder(self.path).logs / ARRAY_LOG.replace("%A", array).replace("%a", task)


def plan_file(path: Path) -> Path:
    """The plan that a user named: a file, or the one that is in force in a folder."""
    return RunFolder(path).present_plan if path.is_dir() else path


def in_utc(seconds: float | None = None) -> str:
    """A time (seconds since 1970; None: now) as people write it."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def default_name(name: str, *, now: float | None = None) -> str:
    """`gpt-20250131-235959`: what the run is, and when it began (UTC)."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}"


def create_run_folder(path: Path) -> RunFolder:
    """Make the folder and its logs folder; it may exist already (a resumed run).

    Raises InputError where it cannot be made or written.
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
            f"cannot write the run folder {path} ({error.strerror}): give another with run_dir=FOLDER"
        ) from error
    return folder


def new_run_folder(name: str, *, parent: Path = RUNS) -> RunFolder:
    """A run folder that did not exist before: two runs in the same second get two folders."""
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
    """The files of a folder whose names are of one pattern, by the number in them, in order."""
    found = {int(match[1]): path for path in folder.glob("*") if (match := name.fullmatch(path.name))}
    return dict(sorted(found.items()))
