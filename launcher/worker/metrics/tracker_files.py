"""Trackers that write files of their own: TensorBoard's events, MLflow's file store, JSON lines of all runs together.

Each takes every finished step; steps that are run again after a resume replace the old ones, as in metrics.jsonl.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from launcher import env
from launcher.errors import InputError
from launcher.planner.options import TrackingOptions
from launcher.planner.record import Plan
from launcher.run.folder import RunFolder
from launcher.run.metrics import MetricsFile, StepMetrics

RUN_TAG = "launcher.run_folder"
LONGEST_PARAMETER = 500  # characters that every MLflow takes


class TensorBoard:
    """TensorBoard's event files, one folder for each run. https://www.tensorflow.org/tensorboard"""

    def __init__(self, plan: Plan, run_dir: Path, tracking: TrackingOptions) -> None:
        self._plan = plan
        folder = tracking.folder
        self._folder = RunFolder(run_dir).tensorboard if folder is None else Path(folder) / run_name(run_dir, tracking)
        self._writer: Any = None

    def log(self, metrics: StepMetrics) -> None:
        if self._writer is None:
            with needing("tensorboard"):
                from torch.utils.tensorboard.writer import SummaryWriter
            # purge_step: what an earlier start logged from this step on is hidden
            self._writer = SummaryWriter(str(self._folder), purge_step=metrics.step)
            self._writer.add_text("plan", f"```json\n{json.dumps(self._plan.to_dict(), indent=1)}\n```")
        for name, value in numbers(metrics).items():
            self._writer.add_scalar(name, value, metrics.step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class MlflowRun:
    """One MLflow run a job, also across restarts: found again by the run folder that it has as a tag.

    It is in the file store of tracking.folder, where MLFLOW_TRACKING_URI says, or in the run folder.
    """

    def __init__(self, plan: Plan, run_dir: Path, tracking: TrackingOptions) -> None:
        self._plan, self._run_dir, self._tracking = plan, run_dir, tracking
        self._client: Any = None
        self._run_id = ""

    def log(self, metrics: StepMetrics) -> None:
        if self._client is None:
            self._open()
        for name, value in numbers(metrics).items():
            self._client.log_metric(self._run_id, name, value, step=metrics.step)

    def close(self) -> None:
        if self._client is not None:
            self._client.set_terminated(self._run_id)

    def _open(self) -> None:
        folder = self._tracking.folder or (None if env.get("MLFLOW_TRACKING_URI") else RunFolder(self._run_dir).mlflow)
        # MLflow asks for a word that the file store, which it wants to leave, is meant
        with needing("mlflow"), env.overridden({"MLFLOW_ALLOW_FILE_STORE": "true"}):
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient(None if folder is None else Path(folder).absolute().as_uri())
            name = env.get("MLFLOW_EXPERIMENT_NAME") or self._tracking.project
            experiment = self._client.get_experiment_by_name(name)
            place = experiment.experiment_id if experiment else self._client.create_experiment(name)
            self._run_id = self._found(place) or self._created(place)

    def _found(self, experiment: str) -> str | None:
        """The run of an earlier start."""
        tagged = f"tags.`{RUN_TAG}` = '{_quotable(self._run_dir)}'"
        found = self._client.search_runs([experiment], tagged, max_results=1)
        return str(found[0].info.run_id) if found else None

    def _created(self, experiment: str) -> str:
        tags = {RUN_TAG: _quotable(self._run_dir), **({"group": self._tracking.group} if self._tracking.group else {})}
        run = self._client.create_run(experiment, tags=tags, run_name=run_name(self._run_dir, self._tracking))
        for name, value in parameters(self._plan).items():
            self._client.log_param(run.info.run_id, name, value)
        return str(run.info.run_id)


class JsonLines:
    """A JSON lines file named after the run: in one folder, those of many runs can be read together."""

    def __init__(self, plan: Plan, run_dir: Path, tracking: TrackingOptions) -> None:
        folder = RunFolder(run_dir).json_lines if tracking.folder is None else Path(tracking.folder)
        self._name, self._parameters = run_name(run_dir, tracking), parameters(plan)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = MetricsFile(folder / f"{self._name}.jsonl")

    def log(self, metrics: StepMetrics) -> None:
        line = {**metrics.to_line(), "run": self._name, **self._parameters}
        self._file.log(StepMetrics.of(line.pop("step"), line))

    def close(self) -> None:
        self._file.close()


@contextmanager
def needing(package: str) -> Iterator[None]:
    """A block that imports a package of an extra; raises InputError with the line that installs it."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"tracking={package} needs a package that is not installed ({error}): "
            f"pip install 'nvlink-launcher[{package}]', or choose another tracking="
        ) from error


TRACKERS: Mapping[str, Callable[[Plan, Path, TrackingOptions], TensorBoard | MlflowRun | JsonLines]] = MappingProxyType(
    {"tensorboard": TensorBoard, "mlflow": MlflowRun, "jsonl": JsonLines}
)


def run_name(run_dir: Path, tracking: TrackingOptions) -> str:
    """What a run is called: as given, else after its folder."""
    return tracking.name or run_dir.name


def numbers(metrics: StepMetrics) -> dict[str, float]:
    """The finite numbers of a step, by name."""
    line: Mapping[str, Any] = metrics.to_line()
    found = {name: value for name, value in line.items() if name != "step" and isinstance(value, int | float)}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def parameters(plan: Plan) -> dict[str, str]:
    """What a run is searched by."""
    job, layout = plan.job, plan.layout
    named = {"cluster": job.cluster.name, "model": job.model.name, "stack": job.stack.name, "layout": layout.brief()}
    named |= {"global_batch": str(job.training.global_batch), "dtype": job.training.dtype}
    named |= {"engine": job.training.engine, "predicted_step_time_s": str(plan.estimate.get("step_time_s"))}
    return {name: value[:LONGEST_PARAMETER] for name, value in named.items()}


def _quotable(path: Path) -> str:
    """A path as a value of MLflow's search language, which has no escape for quotes."""
    return str(path.resolve()).replace("'", "_").replace('"', "_")
