"""Shared by several commands: plan from overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from launcher.commands.given_plan import read_given
from launcher.commands.named import OVERRIDE
from launcher.config.compose import load
from launcher.config.settings import Settings
from launcher.console import notify, waiting
from launcher.errors import InputError
from launcher.planner import Plan
from launcher.planner.build import make_plan
from launcher.planner.given import read_checked
from launcher.planner.launch_only import measuring_plan, program_plan
from launcher.planner.options import OwnRecipeOptions
from launcher.planner.record import RunOptions
from launcher.run.folder import plan_file

SEARCHING = "searching layouts"
MODEL = re.compile(r"^[+~]*model[=.@]")


def checked_settings(overrides: Sequence[str]) -> Settings:
    """Return the settings of these overrides; list the user's own files among them on stderr."""
    settings = load(overrides)
    if settings.options.again is not None:
        raise InputError(f"again={settings.options.again} repeats a run: it is for `launcher run` and `submit`")
    for note in settings.notes:
        notify(note)
    return settings


def plan_to_run(settings: Settings, options: RunOptions, overrides: Sequence[str]) -> Plan:
    """Return the plan of a job to run; if a program's model does not fit, only warn. Raises as `make_plan`.

    A recipe that trains nothing needs no model, and gets one only if it is given.
    """
    given = any(MODEL.match(word) for word in overrides)
    ours = not isinstance(options.recipe, OwnRecipeOptions)
    if ours and options.program is None and options.recipe.stack is None and not given:
        return measuring_plan(settings.job, settings.request, options)
    if options.program is None:
        with waiting(SEARCHING):
            return make_plan(settings.job, settings.request, options, to_run=True)
    plan, warning = program_plan(settings.job, settings.options.layout, options, model_given=given)
    if warning:
        notify(warning)
        notify("starting anyway: only the program knows what it needs")
    return plan


def plan_of(words: Sequence[str]) -> Plan:
    """Return the plan of a run folder if the first word names one, that of `plan=`, or the plan of these overrides."""
    if words and not OVERRIDE.match(words[0]):
        return read_checked(plan_file(Path(words[0])))
    settings = checked_settings(words)
    if settings.options.plan is not None:
        return read_given(settings.options.plan, settings, words)
    with waiting(SEARCHING):
        return make_plan(settings.job, settings.request, settings.run_options)
