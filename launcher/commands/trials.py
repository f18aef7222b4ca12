"""Trials of plans on this machine: all in the same warm ranks, or a program once for each plan."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

from launcher.commands.measuring import run_launcher
from launcher.console import notify
from launcher.errors import JobFailed
from launcher.files import read_json
from launcher.planner import Plan, write_plan
from launcher.planner.options import FIRST_STEPS
from launcher.planner.tuning import Trial, joined, placed, trials_of
from launcher.run.folder import RunFolder
from launcher.run.metrics import read_steps

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
    rounds: int = 1


def tried_in_warm_ranks(plans: Sequence[Plan], settings: TrialSettings) -> list[Trial]:
    """All plans in the same ranks, by the recipe tune, one round after another. A plan that ends them is left out, and
    they are started again for the others.
    """
    files = write_trials(plans, settings.folder / "plans")
    found: dict[str, list[Trial]] = {name: [] for name in files}
    left = [(turn, name) for turn in range(settings.rounds) for name in files]
    number = 0
    while left:
        number += 1
        run = RunFolder(settings.folder / f"run-{number}")
        links = _linked(left, settings.folder / f"trials-{number}")
        code = run_launcher("run", _words(settings, links, run))
        rows = read_json(run.trials, remedy="tune again")["results"] if run.trials.is_file() else []
        done = trials_of({link: files[name] for link, (_, name) in links.items()}, rows)
        for link, trial in done.items():
            found[links[link][1]].append(trial)
        left = [each for link, each in links.items() if link not in done]
        if left and not code:
            raise JobFailed(f"{run.path} ended without all of its results: see its logs")
        if left:
            name = left[0][1]
            notify(f"{files[name].layout.brief()} ended its ranks (its logs: {run.logs}): it is left out")
            found[name] = [Trial(files[name], None, note=f"failed: {run.logs}")]
            left = [each for each in left if each[1] != name]
    return [joined(rounds) for rounds in found.values()]


def _linked(left: Sequence[tuple[int, str]], folder: Path) -> dict[str, tuple[int, str]]:
    """A link to each plan that is still to be tried, named in the order of trials."""
    folder.mkdir()
    links = {}
    for turn, name in left:
        link = folder / f"{turn:03d}-{Path(name).name}"
        link.symlink_to(Path(name))
        links[str(link)] = turn, name
    return links


def _words(settings: TrialSettings, links: Mapping[str, object], run: RunFolder) -> list[str]:
    trials = Path(next(iter(links))).parent
    words = [*settings.overrides, "recipe=tune", f"recipe.trials={trials}", f"recipe.steps={settings.steps}"]
    return [*words, f"recipe.patience={settings.patience}", f"run_dir={run.path}"]


def write_trials(plans: Sequence[Plan], folder: Path) -> dict[str, Plan]:
    """Each plan in a file of its own, named by its number."""
    folder.mkdir(parents=True)
    return {str(write_plan(plan, folder / f"{i:03d}.json")): plan for i, plan in enumerate(plans)}


def tried_one_by_one(plans: Sequence[Plan], settings: TrialSettings) -> list[Trial]:
    """A program of the user's (or an engine that has one life in a process), once for each plan and round."""
    files, best = write_trials(plans, settings.folder / "plans"), float("inf")
    found: dict[str, list[Trial]] = {name: [] for name in files}
    for turn, (file, plan) in product(range(settings.rounds), files.items()):
        number = sum(map(len, found.values())) + 1
        notify(f"plan {number} of {settings.rounds * len(plans)}: {plan.layout.brief()}")
        if turn and not found[file][-1].counts:  # it was stopped, or failed
            found[file].append(found[file][-1])
            continue
        found[file].append(_tried(plan, Path(file), settings.folder / f"run-{number}", settings, best))
        if found[file][-1].counts:
            best = min(best, found[file][-1].step_time_s or best)
    return [joined(rounds) for rounds in found.values()]


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
