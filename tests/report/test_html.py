"""The page of a plan is self-contained, shows the plan, and escapes users' names."""

from __future__ import annotations

from dataclasses import replace

from launcher import plan as make_plan
from launcher.planner import Plan
from launcher.report.facts import RunFacts, curves
from launcher.report.html import page
from launcher.run.metrics import StepMetrics

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


def test_a_loss_that_is_no_number_is_a_gap_and_is_counted() -> None:
    steps = [StepMetrics(step, loss=float("nan") if step == 2 else 3.0, step_s=0.1) for step in range(1, 6)]
    found = a_plan()
    drawn = {curve["id"]: curve for curve in curves(RunFacts("run", steps), found)}
    assert drawn["curve-loss"]["lines"][0]["ys"] == [3.0, None, 3.0, 3.0, 3.0]
    assert "not a number in 1 steps" in page(found, RunFacts("run", steps))


def test_a_plan_that_is_not_the_fastest_says_by_how_much() -> None:
    assert "longer, as estimated" in page(a_plan("layout.recompute=full"))
    assert "the fastest that fits" in page(a_plan())
