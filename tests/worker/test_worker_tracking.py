"""Metrics reach the terminal, metrics.jsonl and wandb; steps that are run again after a resume replace the old ones."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from ranks import make_plan

from launcher.errors import InputError
from launcher.layout import Layout
from launcher.planner.options import TrackingOptions, TrainOptions
from launcher.worker.metrics.report import Measured, describe_split, median_split, result_document, throughput
from launcher.worker.metrics.tracking import METRICS_FILE, JsonLines, Terminal, make_tracker


def test_metrics_file_drops_steps_that_are_run_again_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    first = JsonLines(path)
    for step in range(1, 6):
        first.log(step, {"loss": float(step)})
    first.close()
    path.write_text(path.read_text() + '{"step": 6, "lo')
    again = JsonLines(path)
    again.log(4, {"loss": 40.0})
    again.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_terminal_prints_plain_lines_where_it_is_no_terminal() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream, total=10, every=4)
    for step in range(1, 11):
        terminal.log(step, {"loss": 2.5, "grad_norm": None, "step_s": 0.25, "tokens_per_s": 8192.0, "mfu": None})
    terminal.close()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/10", "4/10", "8/10", "10/10"]
    assert lines[0] == "step 1/10  loss 2.5000  8,192 tokens/s  250.0 ms/step  mfu unknown"


def test_ranks_other_than_the_main_one_write_nothing(tmp_path: Path) -> None:
    tracker = make_tracker(
        make_plan(Layout(tp=1, pp=1, dp=1)), run_dir=tmp_path, tracking=TrackingOptions(), main=False
    )
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_wandb_keeps_one_offline_run_a_job(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    tracking = TrackingOptions(kind="wandb", mode="offline")
    tracker = make_tracker(make_plan(Layout(tp=1, pp=1, dp=1)), run_dir=tmp_path, tracking=tracking, main=True)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 1
    assert (tmp_path / METRICS_FILE).exists()


def test_where_a_step_went_is_the_median_of_each_part_in_words() -> None:
    splits = [{"data_s": 1e-3, "forward_backward_s": s, "exposed_tp_s": s / 4} for s in (0.1, 0.2, 9.0)]
    told = describe_split(median_split(splits))
    assert told == "data 1.0 ms, forward and backward 200.0 ms, in it tensor-parallel collectives 50.0 ms"


def test_mfu_is_unknown_where_the_peak_is() -> None:
    plan = make_plan(Layout(tp=2, pp=2, dp=2))
    assert throughput(plan, step_s=0.5)["mfu"] is None
    assert throughput(plan, step_s=0.5)["tokens_per_s"] == 8 * 16 / 0.5


def test_result_of_a_run_that_had_nothing_left_to_do() -> None:
    plan = make_plan(Layout(tp=1, pp=1, dp=1))
    measured = Measured(None, median_split([]), 2**20)
    document = result_document(plan, losses=[], measured=measured, first_step=9, stopped=False)
    assert document["losses"] == {"first": None, "last": None, "all": []}
    assert document["resumed_after_step"] == 9
    json.dumps(document)


@pytest.mark.parametrize(("step", "lr"), [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.55), (100, 0.1), (200, 0.1)])
def test_learning_rate_warms_up_and_falls_on_a_cosine(step: int, lr: float) -> None:
    options = TrainOptions(steps=100, lr=1.0, min_lr=0.1, warmup_steps=10)
    assert options.lr_at(step) == pytest.approx(lr)


def test_what_deepspeed_does_not_do_here_is_refused_before_anything_starts() -> None:
    assert TrainOptions.from_config({"engine": "torch", "hybrid_shard": True}).hybrid_shard
    with pytest.raises(InputError, match=r"train\.hybrid_shard.*train\.engine=torch"):
        TrainOptions.from_config({"engine": "deepspeed", "hybrid_shard": True})
