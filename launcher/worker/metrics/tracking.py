"""Metrics of a run: the terminal, the run folder, wandb. One tracker a job, on rank 0."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from launcher.console import notify
from launcher.planner.options import TrackingOptions
from launcher.planner.record import Plan
from launcher.run.folder import RunFolder
from launcher.run.metrics import MetricsFile, StepMetrics


class Sink(Protocol):
    """One place that metrics go to."""

    def log(self, metrics: StepMetrics) -> None:
        """Take the metrics of one finished step."""

    def close(self) -> None:
        """Write out what is left."""


class Tracker:
    """Hands metrics to its sinks; has none on ranks other than 0."""

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
        for sink in self._sinks:
            self._keep_going(sink.close)

    def _keep_going(self, work: Callable[[], None]) -> None:
        """A full disk or a closed terminal costs numbers, not the run; it is said once."""
        try:
            work()
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                notify(f"metrics of this run are lost ({error}); the run goes on")


class Terminal:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, stream: TextIO, *, total: int, every: int = 1) -> None:
        self._stream, self._total, self._every = stream, total, every
        self._bar: Any = None
        if stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(file=stream))
            self._task = self._bar.add_task("", total=total)
            self._bar.start()

    def log(self, metrics: StepMetrics) -> None:
        step = metrics.step
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=str(metrics))
        elif step % self._every == 0 or step in (1, self._total):
            print(f"step {step}/{self._total}  {metrics}", file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class Wandb:
    """One wandb run a job, in the run folder; offline unless the user is logged in. No key is read or written by us."""

    def __init__(self, plan: Plan, *, run_dir: Path, tracking: TrackingOptions) -> None:
        import wandb

        mode = tracking.mode
        if mode == "auto":
            mode = "online" if wandb.login(prompt=False) else "offline"
        settings = wandb.Settings(console="off", silent=True, init_timeout=tracking.init_timeout_s)
        arguments: dict[str, Any] = {
            "project": tracking.project,
            "entity": tracking.entity,
            "group": tracking.group,
            "name": tracking.name or run_dir.name,
            "id": hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:12],  # the same after a resume
            "resume": "allow",
            "dir": str(run_dir),
            "config": json.loads(json.dumps(plan.to_dict())),
            "settings": settings,
        }
        try:
            self._run = wandb.init(mode="online" if mode == "online" else "offline", **arguments)
        except wandb.errors.CommError as error:
            print(f"wandb: no connection ({error}); this run is kept offline in {run_dir}/wandb", file=sys.stderr)
            self._run = wandb.init(mode="offline", **arguments)

    def log(self, metrics: StepMetrics) -> None:
        numbers = metrics.to_line()
        self._run.log(numbers, step=numbers.pop("step"))

    def close(self) -> None:
        self._run.finish()


def make_tracker(plan: Plan, *, run_dir: Path, main: bool) -> Tracker:
    """The tracker of a job: with sinks on the main rank, without elsewhere."""
    if not main:
        return Tracker([])
    train, tracking = plan.options.train, plan.options.tracking
    stream = sys.stderr if plan.options.output == "json" else sys.stdout
    sinks: list[Sink] = [MetricsFile(RunFolder(run_dir).metrics)]
    sinks.append(Terminal(stream, total=train.steps, every=train.log_every))
    if tracking.kind == "wandb" and tracking.mode != "disabled":
        sinks.append(Wandb(plan, run_dir=run_dir, tracking=tracking))
    return Tracker(sinks)
