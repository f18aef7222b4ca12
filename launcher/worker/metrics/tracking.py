"""Metrics of a run: the terminal, metrics.jsonl in the run folder, wandb. One tracker a job, on rank 0."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from launcher.planner.options import TrackingOptions
from launcher.planner.record import Plan
from launcher.units import format_seconds

METRICS_FILE = "metrics.jsonl"
Metrics = Mapping[str, Any]


class Sink(Protocol):
    """One place that metrics go to."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of one finished step (counted from 1)."""

    def close(self) -> None:
        """Write out what is left."""


class Tracker:
    """Hands metrics to its sinks; has none on ranks other than 0."""

    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks

    def log(self, step: int, metrics: Metrics) -> None:
        for sink in self._sinks:
            sink.log(step, metrics)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


class JsonLines:
    """metrics.jsonl: one object a step. After a resume, the lines of steps that are run again are dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def log(self, step: int, metrics: Metrics) -> None:
        if self._file is None:
            self._file = self._open(before=step)
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")

    def _open(self, *, before: int) -> TextIO:
        if self._path.exists():
            kept = [line for line in self._path.read_text().splitlines() if _step_of(line) < before]
            temporary = self._path.with_name(f".{self._path.name}")
            temporary.write_text("".join(f"{line}\n" for line in kept))
            temporary.replace(self._path)
        return self._path.open("a", buffering=1)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


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

    def log(self, step: int, metrics: Metrics) -> None:
        text = describe(metrics)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif step % self._every == 0 or step in (1, self._total):
            print(f"step {step}/{self._total}  {text}", file=self._stream, flush=True)

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

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def make_tracker(plan: Plan, *, run_dir: Path, tracking: TrackingOptions, main: bool) -> Tracker:
    """The tracker of a job: with sinks on the main rank, without elsewhere."""
    if not main:
        return Tracker([])
    train = plan.config.get("train") or {}
    stream = sys.stderr if plan.config.get("output") == "json" else sys.stdout
    total, every = int(train.get("steps") or 0), int(train.get("log_every") or 1)
    sinks: list[Sink] = [JsonLines(run_dir / METRICS_FILE)]
    sinks.append(Terminal(stream, total=total, every=every))
    if tracking.kind == "wandb" and tracking.mode != "disabled":
        sinks.append(Wandb(plan, run_dir=run_dir, tracking=tracking))
    return Tracker(sinks)


def describe(metrics: Metrics) -> str:
    """One line of the numbers that a person follows."""
    parts = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
    parts += [f"grad norm {metrics['grad_norm']:.3f}"] if metrics.get("grad_norm") is not None else []
    parts += [f"lr {metrics['lr']:.2e}"] if "lr" in metrics else []
    parts += [f"{metrics['tokens_per_s']:,.0f} tokens/s"] if "tokens_per_s" in metrics else []
    parts += [f"{format_seconds(metrics['step_s'])}/step"] if "step_s" in metrics else []
    if "mfu" in metrics:
        parts.append("mfu unknown" if metrics["mfu"] is None else f"mfu {metrics['mfu']:.1%}")
    return "  ".join(parts)


def _step_of(line: str) -> int:
    """The step of a line of metrics.jsonl; a torn last line counts as one to drop."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize
