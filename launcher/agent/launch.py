"""launch.json: how the ranks of a run are started. The plan says what they run, and where.

It is written once in the run folder before anything starts, and read by the agents, here and under Slurm.
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
    it; None for a run that is started otherwise. `code_root`: where the code was that launch.snapshot has copied.
    """

    settings: LaunchSettings
    work_dir: Path
    slurm: Mapping[str, Any] | None = None
    ssh: Mapping[str, Any] | None = None
    code_root: Path | None = None


def planned(folder: RunFolder) -> Plan:
    """Return the original plan with the options of the last start, as the base of the next start."""
    from launcher.planner import read_plan  # which a look at a run does without

    plan = read_plan(folder.plan)
    return replace(plan, options=read_plan(folder.present_plan).options)


def program_of(plan: Plan) -> tuple[str, tuple[str, ...]]:
    """Return the program of every rank (a path or a module name) and its arguments."""
    own = plan.options.program
    if own is not None:
        return own.target, own.args
    recipe = plan.options.recipe
    own_file = getattr(recipe, "file", None)
    return own_file or str(resource("recipes") / f"{recipe.name}.py"), ()


def write_launch(launch: Launch, file: Path) -> None:
    """Write launch.json atomically."""
    write_json(file, to_plain(launch))


def read_launch(file: Path) -> Launch:
    """Read launch.json; raises InputError if it is not valid."""
    try:
        return from_plain(Launch, read_json(file, remedy=_REMEDY), file.name)
    except InputError as error:
        raise InputError(f"{file} is not a valid launch.json ({error.problems[0]}): {_REMEDY}") from error


def is_submitted(folder: Path) -> bool:
    """Whether a folder is that of a run, or of a sweep, that was prepared for Slurm."""
    file = RunFolder(folder).launch
    return file.is_file() and read_launch(file).slurm is not None
