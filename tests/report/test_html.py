"""The page of a plan is self-contained, shows the plan, and escapes users' names."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

from launcher import plan as make_plan
from launcher.planner import Plan, write_plan
from launcher.report.facts import RunFacts, curves, pipeline
from launcher.report.html import page, run_page
from launcher.report.reproduce import commands
from launcher.run.folder import RunFolder
from launcher.run.metrics import MetricsFile, StepMetrics

MAX_BYTES = 500_000


def a_plan(*overrides: str) -> Plan:
    return make_plan(["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64", *overrides])


def test_the_page_loads_nothing_from_elsewhere() -> None:
    text = page(a_plan("layout.tp=2", "layout.pp=2"))
    assert "src=" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_names_are_escaped_in_text_and_in_the_pages_data() -> None:
    found = a_plan()
    odd = replace(found, why=("<b>bold</b>",), hosts=("</script><script>alert(1)</script>",))
    text = page(odd, RunFacts("<b>"))
    assert "<b>bold" not in text
    assert "</script><script>alert" not in text
    assert "&lt;b&gt; ·" in text


def test_the_page_of_3072_gpus_shows_every_node_in_less_than_half_a_megabyte() -> None:
    found = make_plan(["cluster=dgx_a100_80g", "cluster.num_nodes=384", "model=gpt3_175b", "train.global_batch=1536"])
    text = page(found)
    assert len(text.encode()) < MAX_BYTES
    assert '"nodes":384' in text


def test_all_of_256_micro_batches_are_drawn() -> None:
    words = ["cluster=dgx_a100_80g", "cluster.num_nodes=16", "model=gpt3_175b", "train.global_batch=256"]
    found = make_plan([*words, "layout.tp=8", "layout.pp=16", "layout.dp=1", "layout.micro_batch=1",
                       "layout.virtual_stages=1"])  # fmt: skip
    drawn = pipeline(found)
    assert (drawn.left_out, {box.task.micro_batch for box in drawn.boxes}) == (0, set(range(256)))


@pytest.mark.parametrize("odd", ["nan", "inf"])
def test_a_loss_that_is_no_number_is_a_gap_and_is_counted(odd: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_plan(a_plan(), folder.plan)
    for step in range(1, 6):
        MetricsFile(folder.metrics).log(StepMetrics(step, loss=float(odd) if step == 2 else 3.0, step_s=0.1))
    drawn = {curve["id"]: curve for curve in curves(RunFacts.read(folder), a_plan())}
    assert drawn["curve-loss"]["lines"][0]["ys"] == [3.0, None, 3.0, 3.0, 3.0]
    text = run_page(folder)
    assert "not a number in 1 step," in text
    assert not re.search(r"\b(NaN|nan|Infinity)\b", text.rpartition('<script type="application/json"')[2])


def test_a_plan_that_is_not_the_fastest_says_by_how_much() -> None:
    assert "longer, as estimated" in page(a_plan("layout.recompute=full"))
    assert "the fastest that fits" in page(a_plan())


@pytest.mark.parametrize("words", [
    ["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64"],
    ["cluster=dgx_a100_80g", "cluster.num_nodes=4", "model=gpt3_2b7", "train.global_batch=32", "layout.tp=2",
     "layout.pp=4", "layout.layer_split=[7,9,9,7]"],
    ["cluster=fly_a100_80gb", "model=gpt3_350m", "model.layers=6", "train.dtype=fp32", "stack.year=2021"],
], ids=["plain", "uneven", "other settings"])  # fmt: skip
def test_the_commands_of_a_page_make_the_same_plan_again(words: list[str]) -> None:
    found = make_plan(words)
    start = "submit" if "cluster.num_nodes=4" in words else "run"
    pinned, searched = (shlex.split(line) for line in commands(found, None, words))
    assert (pinned[:2], searched[:2]) == (["launcher", start], ["launcher", "plan"])
    again = make_plan(pinned[2:])
    assert (again.job, again.layout) == (found.job, found.layout)
    assert make_plan([*searched[2:], *(word for word in words if word.startswith("layout."))]) == found
    lines = list(commands(found, None, ["plan=my best.json"]))  # of which only the names in it are known
    assert lines[0] == f"launcher {start} 'plan=my best.json'"
    known = "model.layers=6" not in words
    assert [line.split()[1] for line in lines[1:]] == ([start, "plan"] if known else [])
    for line in lines[1:2]:
        again = make_plan(shlex.split(line)[2:])
        assert (again.job, again.layout) == (found.job, found.layout)
    assert all(escape(line) in page(found, given=words) for line in commands(found, None, words))
