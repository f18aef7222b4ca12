"""Metrics of a run: the terminal, the run folder, wandb. One tracker a job, on rank 0."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from launcher.console import notify
from launcher.planner.options import TrackingOptions
from launcher.planner.record import Plan
from launcher.run.folder import RunFolder
from launcher.run.metrics import MetricsFile, StepMetrics
from launcher.worker.metrics.tracker_files import TRACKERS
from launcher.worker.metrics.wandb_login import asked_mode, login
from launcher.worker.metrics.wandb_process import FINISH_TIMEOUT_S, WandbProcess, mode_of

MANY = 1_000_000  # steps of a program that does not say how many it has
BAR, ALL_NUMBERS, REST = 40, 90, 9  # columns of a whole bar, of all numbers of a step, of the time left and the spaces


class Sink(Protocol):
    """A destination of metrics."""

    def log(self, metrics: StepMetrics) -> None:
        """Take the metrics of one finished step."""

    def close(self) -> None:
        """Write out what is left."""


class Tracker:
    """Passes metrics to its sinks; ranks other than 0 have none."""

    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks
        self._lost = 0

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The metrics of one finished step, counted from 1, under any names; those of StepMetrics are understood."""
        self.add(StepMetrics.of(step, metrics))

    def add(self, metrics: StepMetrics) -> None:
        """The metrics of one finished step."""
        for sink in self._sinks:
            self._keep_going(lambda sink=sink: sink.log(metrics))  # type: ignore[misc]

    def close(self) -> None:
        """Close the sinks, once: a recipe may close its session before the session's block ends."""
        sinks, self._sinks = self._sinks, []
        for sink in sinks:
            self._keep_going(sink.close)

    def _keep_going(self, work: Callable[[], None]) -> None:
        """Survive a full disk or a closed terminal: report lost metrics once and continue."""
        try:
            work()
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                notify(f"metrics of this run are lost ({error}); the run continues")


class Terminal:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, stream: TextIO, *, total: int | None, every: int = 1) -> None:
        self._stream, self._total, self._every = stream, total, every
        self._of = "" if total is None else f"/{total}"
        self._bar: Any = None
        if stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            console = Console(file=stream)
            room = console.width - REST - 2 * len(f"{total or MANY}/")
            self._wide = room >= BAR + ALL_NUMBERS
            self._room = room - BAR // 10
            bar = BarColumn(bar_width=BAR if self._wide else BAR // 10)
            columns = (MofNCompleteColumn(), bar, TimeRemainingColumn(compact=True), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("", total=total)
            self._bar.start()

    def log(self, metrics: StepMetrics) -> None:
        step = metrics.step
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, description=str(metrics) if self._wide else metrics.brief(self._room)
            )
        elif step % self._every == 0 or step in (1, self._total):
            print(f"step {step}{self._of}  {metrics}", file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def make_tracker(plan: Plan, *, run_dir: Path, main: bool) -> Tracker:
    """Make the tracker of a job: with sinks only on the main rank."""
    if not main:
        return Tracker([])
    train, tracking = plan.options.train, plan.options.tracking
    stream = sys.stderr if plan.options.output == "json" else sys.stdout
    sinks: list[Sink] = [MetricsFile(RunFolder(run_dir).metrics)]
    total = train.steps if plan.options.program is None else None  # a program of the user's does not say
    sinks.append(Terminal(stream, total=total, every=train.log_every))
    if tracking.kind in TRACKERS:
        sinks.append(TRACKERS[tracking.kind](plan, run_dir, tracking))
    elif _wants_wandb(tracking):
        timeout_s, offline = tracking.init_timeout_s + FINISH_TIMEOUT_S, mode_of(tracking) == "offline"
        sinks.append(WandbProcess(run_dir, timeout_s=timeout_s, offline=offline))
    return Tracker(sinks)


def _wants_wandb(tracking: TrackingOptions) -> bool:
    """Whether wandb gets the metrics: where that was asked for, or with `auto` where the user is logged in."""
    if tracking.kind == "none" or mode_of(tracking) == "disabled":
        return False
    asked = tracking.kind == "wandb" or asked_mode() is not None
    if asked or (found := login()) is None:
        if not asked:
            notify("wandb is off, for there is no login: metrics.jsonl has the metrics (tracking=wandb keeps a run)")
        return asked
    notify(f"wandb is on, by the login in {found} (tracking=none leaves it out)")
    return True
