"""submit.json in the run folder: what the job's driver must start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.cluster import Cluster
from launcher.errors import InputError
from launcher.files import read_json, write_json
from launcher.planner import Plan, read_plan
from launcher.planner.record import cluster_from_dict
from launcher.run.folder import RunFolder
from launcher.schema import from_plain


@dataclass(frozen=True)
class Submission:
    """What every rank runs, and from which folder.

    `clusters`: by Slurm's GRES type, the clusters that launch.gpu_clusters allows besides the planned one, as in
    plan.json.
    """

    program: str
    args: tuple[str, ...]
    work_dir: str
    clusters: Mapping[str, Any] = field(default_factory=dict)

    def other_clusters(self) -> dict[str, Cluster]:
        """The clusters as values."""
        return {gpu_type: cluster_from_dict(data) for gpu_type, data in self.clusters.items()}


def write_submission(folder: Path, submission: Submission) -> None:
    """Write submit.json, complete or not at all."""
    write_json(RunFolder(folder).submission, asdict(submission))


def read_submission(folder: Path) -> Submission:
    """The submission of a run folder; raises InputError where it has none."""
    path = RunFolder(folder).submission
    try:
        return from_plain(Submission, read_json(path, remedy="submit again"), path.name)
    except InputError as error:
        if not path.exists():
            why = f"{folder} was not submitted to Slurm: it has no {path.name}; `launcher submit` makes it"
            raise InputError(why) from error
        raise InputError(f"{path} cannot be read ({error.problems[0]}): submit again") from error


def is_submitted(folder: Path) -> bool:
    """Whether a folder is that of a run that was prepared for Slurm."""
    return RunFolder(folder).submission.is_file()


def write_planned(folder: Path, plan: Plan) -> None:
    """Keep a plan as it was submitted, whatever becomes of it on other nodes."""
    write_json(RunFolder(folder).planned, plan.to_dict())


def read_planned(folder: Path) -> Plan:
    """The plan as submitted; where nothing was kept, plan.json."""
    kept = RunFolder(folder).planned
    return read_plan(kept if kept.is_file() else RunFolder(folder).plan)


def setup_text(lines: Sequence[str]) -> str:
    """The set-up file that the batch script sources."""
    return "".join(f"{line}\n" for line in ("# launch.setup, sourced by the batch script before anything else", *lines))
