"""Trials of plans on this machine: all in the same warm ranks, or a program once for each plan."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from launcher.commands.measuring import run_launcher
from launcher.console import notify
from launcher.errors import JobFailed
from launcher.files import read_json
from launcher.planner import Plan, write_plan
from launcher.planner.tuning import Trial, placed, trials_of
from launcher.run.folder import RunFolder
from launcher.run.metrics import read_steps

FIRST_STEPS = 2  # that are not counted
POLL_S = 0.3
SAID = re.compile(r"step_time_s[\"']?\s*[=:]\s*([0-9.]+(?:[eE][+-]?\d+)?)")
NO_STEPS = "said no step time"


@dataclass(frozen=True)
class TrialSettings:
    """How plans are tried. `overrides`: the user's own, for the run; `patience`: how much slower a plan may be."""

    overrides: Sequence[str]
    arguments: Sequence[str]
    folder: Path
    steps: int
    patience: float


def tried_in_warm_ranks(plans: Sequence[Plan], settings: TrialSettings) -> list[Trial]:
    """All plans in the same ranks, by the recipe tune. A plan that ends them is left out, and they are started again
    for the others.
    """
    files = write_trials(plans, settings.folder / "plans")
    found: dict[str, Trial] = {}
    left, number = dict(files), 0
    while left:
        number += 1
        run = RunFolder(settings.folder / f"run-{number}")
        trials = settings.folder / f"trials-{number}"
        trials.mkdir()
        here = {}
        for name, plan in left.items():
            link = trials / Path(name).name
            link.symlink_to(Path(name))
            here[str(link)] = plan
        words = [*settings.overrides, "recipe=tune", f"recipe.trials={trials}", f"recipe.steps={settings.steps}"]
        words += [f"recipe.patience={settings.patience}", f"run_dir={run.path}"]
        code = run_launcher("run", words)
        rows = read_json(run.trials, remedy="tune again")["results"] if run.trials.is_file() else []
        done = trials_of(here, rows)
        found |= {str(settings.folder / "plans" / Path(name).name): trial for name, trial in done.items()}
        left = {name: plan for name, plan in left.items() if name not in found}
        if left and not code:
            raise JobFailed(f"{run.path} ended without all of its results: see its logs")
        if left:
            name, plan = next(iter(left.items()))
            notify(f"{plan.layout.brief()} ended its ranks (its logs: {run.logs}): it is left out")
            found[name] = Trial(plan, None, note=f"failed: {run.logs}")
            del left[name]
    return [found[name] for name in files]


def write_trials(plans: Sequence[Plan], folder: Path) -> dict[str, Plan]:
    """Each plan in a file of its own, named by its number."""
    folder.mkdir(parents=True)
    return {str(write_plan(plan, folder / f"{i:03d}.json")): plan for i, plan in enumerate(plans)}


def tried_one_by_one(plans: Sequence[Plan], settings: TrialSettings) -> list[Trial]:
    """A program of the user's (or an engine that has one life in a process), once for each plan."""
    files, found, best = write_trials(plans, settings.folder / "plans"), [], float("inf")
    for number, (file, plan) in enumerate(files.items(), 1):
        notify(f"plan {number} of {len(plans)}: {plan.layout.brief()}")
        found.append(_tried(plan, Path(file), settings.folder / f"run-{number}", settings, best))
        if found[-1].counts:
            best = min(best, found[-1].step_time_s or best)
    return found


def _tried(plan: Plan, file: Path, folder: Path, settings: TrialSettings, best: float) -> Trial:
    words = [*settings.overrides, f"plan={file}", f"run_dir={folder}"]
    rest = ["--", *placed(settings.arguments, plan)] if settings.arguments else []
    argv = [sys.executable, "-P", "-m", "launcher.cli", "run", *words, *rest]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    run, note = RunFolder(folder), ""
    try:
        while process.poll() is None and not note:
            time.sleep(POLL_S)
            steps = step_times(run)[FIRST_STEPS:]
            if len(steps) >= settings.steps:
                break
            if steps and median(steps) > settings.patience * best:
                note = "stopped early: too slow"
        ended = process.poll()
        _stop(process)
    except KeyboardInterrupt:
        process.wait()
        raise
    steps = step_times(run)
    counted = steps[FIRST_STEPS:] or steps
    if ended:
        return Trial(plan, None, note=f"failed: {run.logs}")
    return Trial(plan, median(counted) if counted else None, len(counted), note if counted else NO_STEPS)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a run to end, as Ctrl-C does, and wait; a second time where it does not."""
    for ask in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        if process.poll() is not None:
            return
        process.send_signal(ask)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def step_times(run: RunFolder) -> list[float]:
    """Seconds of the steps so far: of metrics.jsonl, which `session` writes, else those that rank 0 prints as
    `step_time_s=0.5` or as JSON.
    """
    logged = [step.step_s for step in read_steps(run.metrics)] if run.metrics.is_file() else []
    known = [seconds for seconds in logged if seconds is not None]
    return known or list(_printed(run.rank_log(0)))


def _printed(log: Path) -> Iterator[float]:
    if not log.is_file():
        return
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if (match := SAID.search(line)) is None:
                continue
            try:
                yield float(match[1])
            except ValueError:
                continue


def document(trials: Sequence[Trial], seconds: float) -> str:
    """The JSON that `output=json` prints."""
    return json.dumps({"trials": [trial.to_dict() for trial in trials], "seconds": seconds})
