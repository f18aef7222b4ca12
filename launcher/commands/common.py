"""What several commands share: planning from overrides, and finding a run that the user named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.commands.programs import check_module, program_file, script_file
from launcher.config.compose import load
from launcher.config.settings import Settings
from launcher.console import tell
from launcher.errors import InputError
from launcher.planner import Plan, read_plan
from launcher.planner.build import make_plan
from launcher.planner.launch_only import program_plan
from launcher.planner.record import RECIPE
from launcher.resources import resource
from launcher.run.folder import RunFolder, plan_file
from launcher.run.owner import read_owner
from launcher.slurm.record import is_submitted

OVERRIDE = re.compile(r"^[+~]?[\w@./]+=")
MODEL = re.compile(r"^[+~]*model[=.@]")


@dataclass(frozen=True)
class Work:
    """What every rank runs: a recipe of ours, or a script, module or program of the user's, with its arguments."""

    program: str
    args: tuple[str, ...]
    name: str


def checked_settings(overrides: Sequence[str]) -> Settings:
    """The settings of these overrides; which of the user's own files are in them is said on stderr."""
    settings = load(overrides)
    for note in settings.notes:
        tell(note)
    return settings


def work(settings: Settings, args: Sequence[str]) -> Work:
    """The recipe or program of a job; raises InputError where there is none such."""
    options = settings.options
    if options.script is not None:
        path = script_file(options.script, other_python=options.launch.python is not None)
        return Work(str(path), tuple(args), path.stem)
    if options.module is not None:
        if options.launch.python is None:
            check_module(options.module)
        return Work(options.module, tuple(args), options.module.rpartition(".")[2])
    if options.program is not None:
        path = program_file(options.program)
        return Work(str(path), tuple(args), path.stem)
    if args:
        raise InputError(
            f"arguments after -- go to a program of yours, and none is given: set script=FILE (found {list(args)})"
        )
    name = options.recipe.name
    return Work(str(resource("recipes") / f"{name}.py"), (), name)


def plan_to_run(settings: Settings, overrides: Sequence[str]) -> Plan:
    """The plan of a job that is to run; a program's model that does not fit is a warning. Raises as `make_plan`."""
    if settings.options.program_kind == RECIPE:
        return make_plan(settings.job, settings.request, settings.config, to_run=True)
    given = any(MODEL.match(word) for word in overrides)
    plan, warning = program_plan(settings.job, settings.options.layout, settings.config, model_given=given)
    if warning:
        tell(warning)
        tell("it is started all the same: only the program knows")
    return plan


def plan_of(words: Sequence[str]) -> Plan:
    """The plan of a run folder if the first word names one, else the plan that overrides make."""
    if words and not OVERRIDE.match(words[0]):
        return read_plan(plan_file(Path(words[0])))
    settings = checked_settings(words)
    return make_plan(settings.job, settings.request, settings.config)


def named_run(words: Sequence[str], *, command: str) -> tuple[str, Sequence[str]]:
    """The run that the user named (a folder, or a Slurm job id), and the words after it."""
    if not words or OVERRIDE.match(words[0]):
        raise InputError(f"`launcher {command}` needs a run: launcher {command} runs/NAME")
    return words[0], words[1:]


def run_folder(name: str) -> RunFolder:
    """The folder of a run on this machine; raises InputError where there is none."""
    path = Path(name)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give a run folder that `launcher run` or `launcher submit` made")
    return RunFolder(path)


def submitted(name: str) -> bool:
    """Whether a named run is Slurm's: a folder with its submission, or a job id."""
    path = Path(name)
    if not path.exists():
        return re.fullmatch(r"[0-9]{1,18}(_[0-9]{1,18})?", name) is not None
    owner = read_owner(RunFolder(path))
    return is_submitted(path) if owner is None else owner.job_id is not None


def options(words: Sequence[str], *, allowed: Sequence[str]) -> dict[str, str]:
    """The `key=value` words after a run's name; raises InputError for one that is not allowed."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in allowed:
            known = ", ".join(f"{name}=…" for name in allowed) or "none"
            raise InputError(f"{word} is not an option here: allowed are {known}")
        found[key] = value
    return found
