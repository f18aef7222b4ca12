"""TensorBoard, MLflow and JSON lines, read back from the files that the real packages wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks import make_plan

from launcher.commands.prepare import check_tracker
from launcher.errors import InputError
from launcher.layout import Layout
from launcher.planner.options import TrackingOptions
from launcher.planner.record import Plan, RunOptions
from launcher.run.folder import RunFolder
from launcher.run.metrics import StepMetrics, read_steps
from launcher.worker.metrics import tracker_files
from launcher.worker.metrics.tracking import make_tracker

LOSSES = {1: 3.0, 2: 2.5, 3: 2.25}


def planned(kind: str, **more: str) -> Plan:
    options = RunOptions(tracking=TrackingOptions(kind=kind, **more))
    return make_plan(Layout(tp=1, pp=1, dp=1), options=options)


def track(plan: Plan, run_dir: Path, losses: dict[int, float]) -> None:
    """One start of a job."""
    run_dir.mkdir(exist_ok=True)
    tracker = make_tracker(plan, run_dir=run_dir, main=True)
    for step, loss in losses.items():
        tracker.add(StepMetrics(step, loss=loss, step_s=0.5))
    tracker.close()


def restarted(kind: str, run_dir: Path, **more: str) -> None:
    """A job that trained three steps, and the last one again after a resume."""
    track(planned(kind, **more), run_dir, {**LOSSES, 3: 9.0})
    track(planned(kind, **more), run_dir, {3: LOSSES[3]})


def test_tensorboard_reads_the_steps_that_count(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    restarted("tensorboard", tmp_path / "mine")
    events = reader.EventAccumulator(str(RunFolder(tmp_path / "mine").tensorboard)).Reload()
    assert {event.step: event.value for event in events.Scalars("loss")} == LOSSES
    assert "step_s" in events.Tags()["scalars"]


def test_tensorboard_keeps_runs_side_by_side_in_one_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for name in ("a", "b"):
        track(planned("tensorboard", folder=str(tmp_path / "all")), tmp_path / name, LOSSES)
    assert sorted(folder.name for folder in (tmp_path / "all").iterdir()) == ["a", "b"]


def test_mlflow_keeps_one_run_a_job_across_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    restarted("mlflow", tmp_path / "it's mine", project="trial", name="first")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = tracking.MlflowClient(RunFolder(tmp_path / "it's mine").mlflow.as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("trial").experiment_id])
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert run.data.params["layout"].startswith("tp1 pp1 dp1")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert {metric.step: metric.value for metric in history} == LOSSES  # the last of a step counts


def test_mlflow_goes_where_its_own_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    track(planned("mlflow"), tmp_path / "mine", LOSSES)
    assert (tmp_path / "store").is_dir()
    assert not RunFolder(tmp_path / "mine").mlflow.exists()


def test_json_lines_of_many_runs_can_be_read_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        restarted("jsonl", tmp_path / name, folder=str(tmp_path / "all"))
    files = sorted((tmp_path / "all").iterdir())
    assert [file.name for file in files] == ["a.jsonl", "b.jsonl"]
    lines = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert {line["step"]: line["loss"] for line in lines} == LOSSES
    assert {line["run"] for line in lines} == {"a"}
    assert {line["model"] for line in lines} and "layout" in lines[0]


@pytest.mark.parametrize("kind", tracker_files.TRACKERS)
def test_metrics_jsonl_is_there_whatever_else_tracks(kind: str, tmp_path: Path) -> None:
    if kind != "jsonl":
        pytest.importorskip(kind)
    restarted(kind, tmp_path / "mine")
    steps = read_steps(RunFolder(tmp_path / "mine").metrics)
    assert {step.step: step.loss for step in steps} == LOSSES


def test_a_tracker_without_its_package_is_refused_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.commands.prepare.find_spec", lambda name: None)
    for kind in ("wandb", "tensorboard", "mlflow"):
        with pytest.raises(InputError, match=rf"pip install 'nvlink-launcher\[{kind}\]'"):
            check_tracker(planned(kind))
    check_tracker(planned("jsonl"))
