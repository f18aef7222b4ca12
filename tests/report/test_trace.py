"""The trace keeps the Trace Event Format as Perfetto documents it, and has the schedule that the plan predicts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report.trace_format import assert_named_and_nested, events_of

from launcher import InputError
from launcher import plan as make_plan
from launcher.cli import main
from launcher.report.facts import pipeline
from launcher.report.trace import FIRST_TRACK, trace
from launcher.run.folder import RunFolder
from launcher.run.spans import RankSpans, Span, read_spans


@pytest.mark.parametrize(
    "layout",
    [
        ("layout.pp=1", "layout.tp=1"),
        ("layout.pp=4", "layout.tp=1", "layout.schedule=gpipe"),
        ("layout.pp=4", "layout.tp=1", "layout.schedule=zb_h1"),
        ("layout.pp=4", "layout.tp=2", "layout.virtual_stages=2"),
        ("layout.pp=2", "layout.tp=2", "layout.recompute=full"),
    ],
    ids=lambda words: " ".join(words),
)
def test_a_predicted_schedule_has_every_micro_batch_of_every_stage_and_ends_with_the_step(layout: Any) -> None:
    words = ["stack=megatron_lm"] if "layout.schedule=zb_h1" in layout else []
    plan = make_plan(["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64", *words, *layout])
    events = events_of(trace(plan, []))
    assert_named_and_nested(events)
    boxes = [e for e in events if e["ph"] == "X"]
    total = plan.layout.num_micro_batches(64) * plan.layout.pp * plan.layout.virtual_stages
    for kind in "FBW" if plan.layout.schedule == "zb_h1" else "FB":
        assert len([e for e in boxes if e["cat"] == kind]) == total
    end = max(e["ts"] + e["dur"] for e in boxes)
    assert end == pytest.approx(plan.estimate["step_time_s"] * 1e6, rel=1e-6)


def test_a_trace_leaves_out_no_micro_batch_that_the_page_has_no_room_for() -> None:
    words = [
        "cluster=dgx_a100_80g",
        "cluster.num_nodes=64",
        "model=gpt3_175b",
        "train.global_batch=1536",
        "layout.pp=16",
    ]
    plan = make_plan([*words, "layout.tp=8", "layout.micro_batch=1", "layout.virtual_stages=1"])
    big = replace(plan, layout=replace(plan.layout, dp=1), job=plan.job)
    assert pipeline(big).left_out > 0
    assert json.loads(trace(big, []))["otherData"]["micro_batches_not_drawn"] == 0


def test_ranks_of_a_step_begin_as_far_apart_as_they_did(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for rank, began_at in ((0, 100.0), (4, 100.25)):
        spans = (Span("F", 0.0, 0.5, stage=rank // 4, micro_batch=0), Span("tp", 0.1, 0.2))
        RankSpans(rank, 4, "host", began_at, 0.5, spans).write(folder.span_file(step=4, rank=rank))
    plan = make_plan(["model=gpt3_1b3", "cluster=dgx_a100_80g", "layout.pp=2", "layout.tp=4"])
    events = events_of(trace(plan, read_spans(folder.spans)))
    assert_named_and_nested(events)
    forward = {e["tid"] - FIRST_TRACK: e["ts"] for e in events if e["name"] == "forward 0" and e["pid"] == 5}
    assert forward == {0: 0.0, 4: 250000.0}


def spans_file(kind: str, begin: str, end: str) -> str:
    span = f'{{"kind":"{kind}","begin_s":{begin},"end_s":{end},"stage":0,"micro_batch":0}}'
    return f'{{"rank":0,"step":4,"host":"a","began_at":1,"step_s":1,"spans":[{span}]}}'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "not valid JSON"),
        ('{"rank": 0}', "is not a recorded step"),
        (spans_file("Q", "0", "1"), "of kind Q"),
        (spans_file("F", "2", "1"), "ends before"),
        (spans_file("F", "0", "NaN"), "ends before"),
    ],
)
def test_a_damaged_file_of_spans_is_named(tmp_path: Path, text: str, found: str) -> None:
    file = RunFolder(tmp_path).span_file(step=4, rank=0)
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(InputError, match=found) as raised:
        read_spans(file.parent)
    assert file.name in str(raised.value)


def test_a_program_without_a_model_has_no_schedule() -> None:
    plan = make_plan(["model=gpt3_1b3", "cluster=dgx_a100_80g", "layout.pp=2", "layout.tp=4"])
    with pytest.raises(InputError, match="nothing is known of the schedule"):
        trace(replace(plan, estimate={}), [])


@pytest.mark.parametrize(
    "words",
    [
        ["report", "cluster=dgx_a100_80g", "model=gpt3_1b3", "trace={}/t.json"],
        ["report", "cluster=dgx_a100_80g", "model=gpt3_1b3", "file={}/t.html"],
        ["show", "cluster=dgx_a100_80g", "out={}/t.svg"],
        ["plan", "cluster=dgx_a100_80g", "model=gpt3_1b3", "save={}/t.json"],
    ],
    ids=["trace", "page", "picture", "plan"],
)
def test_a_file_that_cannot_be_written_is_named_and_one_in_a_new_folder_is_written(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main([word.format(tmp_path / "file") for word in words]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "cannot write" in said and "choose another with" in said
    assert main([word.format(tmp_path / "new" / "folder") for word in words]) == 0
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 1
