"""Metrics reach the terminal, metrics.jsonl and wandb; steps that are run again after a resume replace the old ones."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from ranks import make_plan

from launcher.layout import Layout
from launcher.planner.options import TrackingOptions, TrainOptions
from launcher.planner.record import RunOptions
from launcher.run.folder import RunFolder
from launcher.run.metrics import StepMetrics, describe_split, summarise_steps
from launcher.worker.metrics.report import throughput, train_result
from launcher.worker.metrics.tracking import Terminal, Tracker, make_tracker


def test_terminal_prints_plain_lines_where_it_is_no_terminal() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream, total=10, every=4)
    for step in range(1, 11):
        terminal.log(StepMetrics(step, loss=2.5, step_s=0.25, tokens_per_s=8192.0))
    terminal.close()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/10", "4/10", "8/10", "10/10"]
    assert lines[0] == "step 1/10  loss 2.5000  8,192 tokens/s  250.0 ms/step  mfu unknown"


def test_ranks_other_than_the_main_one_write_nothing(tmp_path: Path) -> None:
    tracker = make_tracker(make_plan(Layout(tp=1, pp=1, dp=1)), run_dir=tmp_path, main=False)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_wandb_keeps_one_offline_run_a_job(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    options = RunOptions(tracking=TrackingOptions(kind="wandb", mode="offline"))
    tracker = make_tracker(make_plan(Layout(tp=1, pp=1, dp=1), options=options), run_dir=tmp_path, main=True)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 1
    assert RunFolder(tmp_path).metrics.exists()


class FullDisk:
    """A sink that fails as a full disk does."""

    def log(self, metrics: StepMetrics) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_full_disk_costs_metrics_and_not_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    tracker = Tracker([FullDisk(), Terminal(stream, total=2)])
    tracker.log(1, {"loss": 1.0})
    tracker.log(2, {"loss": 0.5})
    tracker.close()
    assert len(stream.getvalue().splitlines()) == 2
    assert capsys.readouterr().err.count("No space left") == 1


def test_where_a_step_went_is_the_median_of_each_part_in_words() -> None:
    splits = [{"data_s": 1e-3, "forward_backward_s": s, "exposed_tp_s": s / 4} for s in (0.1, 0.2, 9.0)]
    steps = [StepMetrics(i + 1, split_s=split) for i, split in enumerate(splits)]
    assert (
        describe_split(summarise_steps(steps).split_s)
        == "data 1.0 ms, forward and backward 200.0 ms, in it tensor-parallel collectives 50.0 ms"
    )


def test_mfu_is_unknown_where_the_peak_is() -> None:
    plan = make_plan(Layout(tp=2, pp=2, dp=2))
    assert throughput(plan, step_s=0.5)[1] is None
    assert throughput(plan, step_s=0.5)[0] == 8 * 16 / 0.5


def test_result_of_a_run_that_had_nothing_left_to_do() -> None:
    plan = make_plan(Layout(tp=1, pp=1, dp=1))
    document = train_result(plan, [], first_step=9, stopped=False).to_dict()
    assert document["losses"] == {"first": None, "last": None, "all": []}
    assert document["resumed_after_step"] == 9
    json.dumps(document)


@pytest.mark.parametrize(("step", "lr"), [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.55), (100, 0.1), (200, 0.1)])
def test_learning_rate_warms_up_and_falls_on_a_cosine(step: int, lr: float) -> None:
    options = TrainOptions(steps=100, lr=1.0, min_lr=0.1, warmup_steps=10)
    assert options.lr_at(step) == pytest.approx(lr)
