"""launch.json: how the ranks of a run are started. What they run, and where, is the plan's to say.

Written once in the run folder, before anything starts; read by the agents of a run, here and under Slurm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.agent.settings import LaunchSettings
from launcher.errors import InputError
from launcher.files import read_json, write_json
from launcher.resources import resource
from launcher.run.folder import RunFolder
from launcher.schema import from_plain, to_plain

if TYPE_CHECKING:
    from launcher.planner import Plan

_REMEDY = "start the run again"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The settings of a start, and the folder that ranks work in. `slurm`, `ssh`: as the record.py of that room has
    it; None for a run that is started otherwise.
    """

    settings: LaunchSettings
    work_dir: Path
    slurm: Mapping[str, Any] | None = None
    ssh: Mapping[str, Any] | None = None


def planned(folder: RunFolder) -> Plan:
    """What was planned, with the options of the last start: what the next start begins with."""
    from launcher.planner import read_plan  # which a look at a run does without

    plan = read_plan(folder.plan)
    return replace(plan, options=read_plan(folder.present_plan).options)


def program_of(plan: Plan) -> tuple[str, tuple[str, ...]]:
    """What every rank of a plan runs, and its arguments: a path, or the name of a module."""
    own = plan.options.program
    if own is not None:
        return own.target, own.args
    return str(resource("recipes") / f"{plan.options.recipe.name}.py"), ()


def write_launch(launch: Launch, file: Path) -> None:
    """Write it, complete or not at all."""
    write_json(file, to_plain(launch))


def read_launch(file: Path) -> Launch:
    """What `write_launch` wrote; raises InputError for anything else."""
    try:
        return from_plain(Launch, read_json(file, remedy=_REMEDY), file.name)
    except InputError as error:
        raise InputError(f"{file} does not say how a run is started ({error.problems[0]}): {_REMEDY}") from error


def is_submitted(folder: Path) -> bool:
    """Whether a folder is that of a run, or of a sweep, that was prepared for Slurm."""
    file = RunFolder(folder).launch
    return file.is_file() and read_launch(file).slurm is not None
