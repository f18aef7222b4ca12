"""The page of a run stands alone, shows what the plan says, and escapes what users name."""

from __future__ import annotations

from launcher.config.compose import load
from launcher.layout.resolve import plain_layout
from launcher.planner import Plan
from launcher.report.html import page


def a_plan(*overrides: str, why: tuple[str, ...] = ("fastest",)) -> Plan:
    settings = load(["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64", *overrides])
    layout = plain_layout(settings.job, settings.request)
    estimate = {"step_time_s": 1.5, "time": {"compute": 1.2, "tp": 0.3}, "memory": {"parameters": 3 * 2**30}}
    return Plan(settings.job, layout, estimate, why, settings.config)


def test_the_page_loads_nothing_from_elsewhere() -> None:
    text = page(a_plan("layout.tp=2", "layout.pp=2"))
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text


def test_every_rank_of_the_node_is_drawn() -> None:
    text = page(a_plan("layout.tp=2", "layout.pp=2"))
    for rank in range(8):
        assert f"rank {rank} on GPU {rank}" in text


def test_names_are_escaped() -> None:
    assert "<b>" not in page(a_plan(why=("<b>bold</b>",)), name="<b>")
