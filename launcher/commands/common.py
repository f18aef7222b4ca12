"""Shared by several commands: plan from overrides, and find the run that the user named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from launcher.commands.given_plan import read_given
from launcher.config.compose import load
from launcher.config.settings import Settings
from launcher.console import notify
from launcher.errors import InputError
from launcher.planner import Plan, read_plan
from launcher.planner.build import make_plan
from launcher.planner.launch_only import program_plan
from launcher.planner.record import RunOptions
from launcher.run.folder import RunFolder, plan_file
from launcher.run.owner import read_owner
from launcher.slurm.record import is_submitted

OVERRIDE = re.compile(r"^[+~]?[\w@./]+=")
MODEL = re.compile(r"^[+~]*model[=.@]")


def checked_settings(overrides: Sequence[str]) -> Settings:
    """Return the settings of these overrides; list the user's own files among them on stderr."""
    settings = load(overrides)
    for note in settings.notes:
        notify(note)
    return settings


def plan_to_run(settings: Settings, options: RunOptions, overrides: Sequence[str]) -> Plan:
    """Return the plan of a job to run; if a program's model does not fit, only warn. Raises as `make_plan`."""
    if options.program is None:
        return make_plan(settings.job, settings.request, options, to_run=True)
    given = any(MODEL.match(word) for word in overrides)
    plan, warning = program_plan(settings.job, settings.options.layout, options, model_given=given)
    if warning:
        notify(warning)
        notify("starting anyway: only the program knows what it needs")
    return plan


def plan_of(words: Sequence[str]) -> Plan:
    """Return the plan of a run folder if the first word names one, that of `plan=`, or the plan of these overrides."""
    if words and not OVERRIDE.match(words[0]):
        return read_plan(plan_file(Path(words[0])))
    settings = checked_settings(words)
    if settings.options.plan is not None:
        return read_given(settings.options.plan, settings, words)
    return make_plan(settings.job, settings.request, settings.run_options)


def named_run(words: Sequence[str], *, command: str) -> tuple[str, Sequence[str]]:
    """Return the run that the user named (a folder or a Slurm job id) and the words after it."""
    if not words or OVERRIDE.match(words[0]):
        raise InputError(f"`launcher {command}` needs a run: launcher {command} runs/NAME")
    return words[0], words[1:]


def run_folder(name: str) -> RunFolder:
    """Return the folder of a run on this machine; raises InputError if there is none."""
    path = Path(name)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give a run folder that `launcher run` or `launcher submit` made")
    return RunFolder(path)


def submitted(name: str) -> bool:
    """Return whether a run was submitted to Slurm: a folder with a submission record, or a job id."""
    path = Path(name)
    if not path.exists():
        return re.fullmatch(r"[0-9]{1,18}(_[0-9]{1,18})?", name) is not None
    owner = read_owner(RunFolder(path))
    return is_submitted(path) if owner is None else owner.job_id is not None


def options(words: Sequence[str], *, allowed: Sequence[str]) -> dict[str, str]:
    """Parse the `key=value` words after a run's name; raises InputError for a key that is not allowed."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in allowed:
            known = ", ".join(f"{name}=…" for name in allowed) or "none"
            raise InputError(f"{word} is not an option here: allowed are {known}")
        found[key] = value
    return found
