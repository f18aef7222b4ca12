"""The JSON document of `launcher plan`: its names are a public contract."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from shapes import cluster, job, model

from launcher.cost.model import CostModel
from launcher.errors import InputError
from launcher.layout import LayoutRequest
from launcher.planner.build import make_plan
from launcher.planner.document import plans_document
from launcher.planner.explain import reasons
from launcher.planner.options import RecipeOptions
from launcher.planner.record import Program, RunOptions, read_plan, write_plan
from launcher.planner.search import search
from launcher.stacks import stack_of

JOB = job(on=cluster(domains=(4,)), of=model(layers=8), global_batch=16)
LAYOUT_KEYS = {
    *("tp", "pp", "dp", "cp", "ep", "virtual_stages", "micro_batch", "zero_stage", "recompute", "sequence_parallel"),
    *("shard_group", "recompute_fraction", "axis_order", "schedule", "layer_split", "tp_across_domains"),
    "offload_optimizer",
}
PLAN_KEYS = {
    *("layout", "step_time_s", "model_tflops_per_gpu", "hardware_tflops_per_gpu", "mfu", "hfu", "tokens_per_s_per_gpu"),
    *("memory_bytes_per_gpu", "memory", "time", "cost_per_million_tokens", "why"),
}


@pytest.fixture(scope="module")
def document() -> dict[str, object]:
    cost = CostModel(JOB)
    result = search(JOB, LayoutRequest(), top=4, model=cost)
    return json.loads(json.dumps(plans_document(result, reasons(result, cost), seconds=0.5)))


def test_the_names_of_the_contract_are_all_there(document: dict[str, object]) -> None:
    assert set(document) == {
        *("plans", "rejected", "searched", "seconds"),
        *("cluster", "model", "stack", "batch", "placement", "version"),
    }
    assert len(document["plans"]) == 4
    for plan in document["plans"]:
        assert set(plan) >= PLAN_KEYS
        assert set(plan["layout"]) == LAYOUT_KEYS


def test_every_degree_is_resolved(document: dict[str, object]) -> None:
    for plan in document["plans"]:
        layout = plan["layout"]
        assert layout["tp"] * layout["pp"] * layout["dp"] * layout["cp"] == JOB.cluster.num_gpus
        assert sum(layout["layer_split"]) == JOB.model.layers
        assert "auto" not in layout.values() and None not in layout.values()


def test_breakdowns_add_up(document: dict[str, object]) -> None:
    for plan in document["plans"]:
        assert sum(plan["memory"].values()) == pytest.approx(plan["memory_bytes_per_gpu"])
        shown = sum(seconds for name, seconds in plan["time"].items() if "hidden" not in name)
        assert shown == pytest.approx(plan["step_time_s"])


def test_rates_agree_with_the_step_time(document: dict[str, object]) -> None:
    for plan in document["plans"]:
        flops = JOB.model.step_flops(sequences=JOB.training.global_batch)
        rate = flops / plan["step_time_s"] / JOB.cluster.num_gpus
        assert plan["model_tflops_per_gpu"] == pytest.approx(rate / 1e12)
        assert plan["mfu"] == pytest.approx(rate / 312e12)
        tokens = JOB.training.global_batch * JOB.model.seq_len / plan["step_time_s"] / JOB.cluster.num_gpus
        assert plan["tokens_per_s_per_gpu"] == pytest.approx(tokens)
        assert plan["cost_per_million_tokens"] == pytest.approx(2.0 / 3600 / tokens * 1e6)


def test_a_plan_is_the_first_choice_and_survives_being_written(tmp_path: object) -> None:
    plan = make_plan(JOB, LayoutRequest(tp=2), RunOptions(asked=LayoutRequest(tp=2)))
    assert plan.layout == search(JOB, LayoutRequest(tp=2), top=1).best.layout
    assert plan.why
    assert read_plan(write_plan(plan, tmp_path / "plan")) == plan


RECIPE = RunOptions(recipe=RecipeOptions(name="gpt", stack="launcher"))
OURS = replace(JOB, stack=stack_of("launcher"))


def test_a_recipe_runs_nothing_but_the_stack_that_it_is() -> None:
    assert make_plan(OURS, LayoutRequest(), RECIPE, to_run=True).job == OURS
    assert make_plan(JOB, LayoutRequest(), RECIPE).job == JOB
    with pytest.raises(
        InputError, match=r"stack=megatron_lm: the recipe gpt uses the stack launcher.*set stack=launcher"
    ):
        make_plan(JOB, LayoutRequest(), RECIPE, to_run=True)


def test_habits_that_the_engines_lack_are_planned_and_not_run() -> None:
    asked = replace(OURS, stack=stack_of("launcher", fused_rotary=True))
    assert any("stack.fused_rotary=true" in line for line in make_plan(asked, LayoutRequest(), RECIPE).why)
    with pytest.raises(InputError, match=r"stack.fused_rotary=true: .* built with false"):
        make_plan(asked, LayoutRequest(), RECIPE, to_run=True)


def test_a_plan_for_a_script_says_which_stack_was_assumed() -> None:
    why = make_plan(
        JOB, LayoutRequest(), RunOptions(program=Program(kind="script", target="train.py")), to_run=True
    ).why
    assert any("assumed to train like stack=megatron_lm" in line for line in why)
