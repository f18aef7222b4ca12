"""`launcher tune`: run the most promising plans one after another, and keep the fastest."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.commands.calibrate import learned_from
from launcher.commands.common import checked_settings
from launcher.commands.invocation import Invocation
from launcher.commands.prepare import check_devices
from launcher.commands.trials import TrialSettings, document, tried_in_warm_ranks, tried_one_by_one
from launcher.config.settings import Settings
from launcher.console import has_colour, notify, terminal_width
from launcher.errors import InputError, JobFailed
from launcher.files import user_path, written_as
from launcher.planner import Plan, write_plan
from launcher.planner.tuning import Trial, candidates, winner
from launcher.report.table import LEFT, RIGHT, draw
from launcher.run.folder import new_run_folder
from launcher.text import whole_number
from launcher.units import format_seconds

TOP, STEPS, ROUNDS, PATIENCE = 6, 8, 1, 1.5
SAVE = "save=FILE"
OF_TRIALS = ("steps", "patience", "rounds")
OF_PLANNING = ("top", "save", "output", "dry_run", "run_dir", *OF_TRIALS)  # not for the runs themselves


def run(invocation: Invocation) -> int:
    """Print predicted and measured step times, and write the fastest plan; 1 where none ran to its end."""
    own = {word.split("=", 1)[0]: word.split("=", 1)[1] for word in invocation.overrides if "=" in word}
    steps, rounds = _count(own.get("steps"), STEPS, "steps"), _count(own.get("rounds"), ROUNDS, "rounds")
    patience = _factor(own.get("patience"))
    words = [word for word in invocation.overrides if word.split("=", 1)[0] not in OF_TRIALS]
    settings = checked_settings(words)
    plans = _plans(settings, top=settings.options.top if "top" in own else TOP)
    latest = plans[0].estimate["step_time_interval_s"][1]
    near = sum(plan.estimate["step_time_interval_s"][0] <= latest for plan in plans)
    again = f" in each of {rounds} rounds" if rounds > 1 else ""
    notify(f"{len(plans)} plans, {steps} steps of each{again}; the intervals of {near} reach into the first one's")
    if settings.options.dry_run:
        _show([Trial(plan, None, note="not run") for plan in plans], settings, seconds=0.0)
        return 0
    if settings.options.save is not None:
        with written_as(user_path(settings.options.save), SAVE):
            pass  # before the trials, not after them
    given = settings.options.run_dir
    folder = Path(given) if given else new_run_folder("tune").path
    if given and folder.exists() and any(folder.iterdir()):
        raise InputError(f"run_dir={folder} is not empty: give a folder for these trials, or leave run_dir out")
    folder = folder.absolute()
    rest = [word for word in words if word.split("=", 1)[0] not in OF_PLANNING]
    trial = TrialSettings(rest, invocation.rest, folder, steps, patience, rounds)
    began = time.monotonic()
    found = _tried(settings, plans, trial)
    return _conclude(found, settings, folder, seconds=time.monotonic() - began)


def _plans(settings: Settings, *, top: int) -> list[Plan]:
    options = settings.run_options
    if options.program is None and options.recipe.name != "gpt":
        raise InputError(
            f"recipe={options.recipe.name} trains nothing that could be tuned: choose recipe=gpt, or script="
        )
    plans = candidates(settings.job, settings.options.layout, options, top=top)  # no default layout: it is in question
    if max(plan.placement.num_nodes for plan in plans) > 1:
        raise InputError(
            f"{settings.job.cluster.name} has {settings.job.cluster.num_nodes} nodes, and plans are tried on this one: "
            "set cluster.num_nodes=1, or try each as a job of its own with `launcher submit plan=FILE`"
        )
    check_devices(plans[0])
    return plans


def _tried(settings: Settings, plans: Sequence[Plan], trial: TrialSettings) -> list[Trial]:
    warm = settings.run_options.program is None and settings.job.training.engine == "torch"
    sizes = {plan.layout.world_size for plan in plans}
    return tried_in_warm_ranks(plans, trial) if warm and len(sizes) == 1 else tried_one_by_one(plans, trial)


def _conclude(found: Sequence[Trial], settings: Settings, folder: Path, *, seconds: float) -> int:
    best = winner(found)
    _show(found, settings, seconds=seconds)
    if best is None:
        raise JobFailed(f"no plan ran to its end: see the logs in {folder}")
    kept = [folder / "best.json", *([user_path(settings.options.save)] if settings.options.save else [])]
    for file in kept:
        with written_as(file, SAVE):
            write_plan(best.plan, file)
    notify(f"the fastest, {best.plan.layout.brief()}, took {format_seconds(best.step_time_s or 0.0)} a step")
    notify(f"run it with: launcher run plan={shlex.quote(str(kept[-1]))}   ({seconds:.0f} s for all trials)")
    for line in learned_from(sorted(folder.glob("run-*")), settings):
        notify(line)
    return 0


def _show(trials: Sequence[Trial], settings: Settings, *, seconds: float) -> None:
    as_json = settings.options.output == "json"
    print(document(trials, seconds) if as_json else "\n".join(_table(trials)))


def _table(trials: Sequence[Trial]) -> list[str]:
    columns = {
        "plan": LEFT,
        **dict.fromkeys(("predicted", "nine of ten in", "measured", "of predicted"), RIGHT),
        "": LEFT,
    }
    best = winner(trials)
    cells = [_cells(trial, best) for trial in trials]
    return draw(columns, cells, bold=has_colour(sys.stdout), width=terminal_width(sys.stdout))


def _cells(trial: Trial, best: Trial | None) -> list[str]:
    predicted, found = trial.plan.estimate["step_time_s"], trial.step_time_s
    low, high = trial.plan.estimate["step_time_interval_s"]
    measured = format_seconds(found) if found is not None else "-"
    ratio = f"{found / predicted:.2f}" if found is not None else "-"
    note = "fastest" if trial is best else trial.note
    interval = f"{format_seconds(low)} – {format_seconds(high)}"
    return [trial.plan.layout.brief(), format_seconds(predicted), interval, measured, ratio, note]


def _count(text: str | None, usual: int, name: str) -> int:
    number = usual if text is None else whole_number(text)
    if not number:
        raise InputError(f"{name}={text} must be a whole number, at least 1")
    return number


def _factor(text: str | None) -> float:
    try:
        factor = PATIENCE if text is None else float(text)
    except ValueError:
        factor = 0.0
    if not 1 <= factor < 1e6:
        raise InputError(f"patience={text} must be a number of at least 1: how much slower than the best a plan may be")
    return factor
