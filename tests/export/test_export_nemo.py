"""Megatron Bridge's overrides are fields that its configuration has, and say the plan."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from export_plans import PLANS, plan_of

from launcher.export import megatron, nemo
from launcher.planner import Plan

HERE = Path(__file__).parent
OPTIONS = HERE / "options" / "nemo.csv"
BRIDGE = os.environ.get("MEGATRON_BRIDGE")
OTHER = "other habits"
OTHER_WORDS = ("zero3 with tp", "stack=megatron_lm", "layout.zero_stage=1", "layout.sequence_parallel=true",
               "stack.fused_rotary=false", "stack.fused_activation=false", "stack.fused_loss=true",
               "stack.fused_accumulation=false", "stack.tp_overlap=async",
               "stack.grad_reduce_dtype=train", "stack.overlap_grad_reduce=false")  # fmt: skip
SAID = [name for name in PLANS if not list(nemo.TARGET.cannot((plan := plan_of(name)).job, plan.layout))]


@pytest.mark.parametrize("name", SAID)
def test_every_override_is_a_field_that_is_documented(name: str) -> None:
    with OPTIONS.open() as file:
        documented = {row["option"] for row in csv.DictReader(file)}
    assert {key for key, _ in nemo.settings(plan_of(name))} <= documented


def test_a_recipe_with_a_configuration_of_overlap_gets_it_there_too() -> None:
    has, other = overrides("zero2"), overrides("context")  # llama2_7b's recipe has one, llama3_8b's has none
    assert has["comm_overlap.overlap_grad_reduce"] == has["ddp.overlap_grad_reduce"] == "true"
    assert not any(key.startswith("comm_overlap.") for key in other)


def overrides(name: str) -> dict[str, str]:
    lines = nemo.write(plan_of(name)).files[nemo.OVERRIDES].splitlines()
    return dict(line.split("=", 1) for line in lines)  # type: ignore[misc]


def test_degrees_order_and_stages_are_said() -> None:
    assert overrides("pipeline first")["dist.use_tp_pp_dp_mapping"] == "true"
    assert overrides("virtual stages")["model.virtual_pipeline_model_parallel_size"] == "4"
    assert overrides("uneven ends")["model.num_layers_in_first_pipeline_stage"] == "7"
    assert overrides("uneven")["model.pipeline_model_parallel_layout"].startswith("'Ettttttt|tttttttt|")
    assert overrides("experts")["model.expert_model_parallel_size"] == "8"
    assert overrides("zero3")["ddp.data_parallel_sharding_strategy"] == "optim_grads_params"


def test_a_named_model_is_its_recipe_and_another_gets_its_shape() -> None:
    assert "--recipe llama3_8b_pretrain_config" in nemo.write(plan_of("context")).files["start.sh"]
    assert "model.hidden_size" not in overrides("context")
    assert "--recipe vanilla_gpt_pretrain_config" in nemo.write(plan_of("plain dp")).files["start.sh"]
    assert overrides("plain dp")["model.hidden_size"] == "2048"


@pytest.mark.slow
@pytest.mark.skipif(
    BRIDGE is None, reason="set MEGATRON_BRIDGE to an unpacked Megatron Bridge and core, or run .ci/stacks"
)
@pytest.mark.parametrize("name", [*SAID, OTHER])
def test_megatron_bridges_own_parser_and_checks_read_the_plan_back(name: str) -> None:
    plan, read = plan_of(*(OTHER_WORDS if name == OTHER else (name,))), bridge_reads()[name]
    assert {key: value for key, value in nemo.settings(plan) if read["said"][key] != value} == {}
    assert read["stages"] == list(plan.layout.layer_split)
    for axis in ("tp", "cp", "dp", "pp"):
        assert sorted(map(tuple, read["groups"][axis])) == sorted(plan.grid.groups(axis))
    assert sorted(map(tuple, read["groups"]["ep"])) == (sorted(plan.grid.groups("ep")) if plan.layout.ep > 1 else [])


def shape_of_recipe(plan: Plan) -> dict[str, int]:
    """The shape that a named recipe brings; the overrides give that of any other model."""
    model = plan.job.model
    if nemo.recipe(plan) == nemo.BARE:
        return {"num_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "vocab_size": 1024}
    names = {"num_layers": model.layers, "hidden_size": model.hidden, "num_attention_heads": model.heads}
    return {**names, "num_query_groups": model.kv_heads, "vocab_size": model.vocab}


@cache
def bridge_reads() -> dict[str, Any]:
    """Every plan as Megatron Bridge reads it, by one process: its import takes ten seconds."""
    named = {name: plan_of(name) for name in SAID} | {OTHER: plan_of(*OTHER_WORDS)}
    plans = list(named.values())
    asked = [
        {
            "world_size": plan.layout.world_size,
            "environment": megatron.environment(plan),
            "recipe": shape_of_recipe(plan),
            "overlap": plan.job.model.name in nemo.OVERLAP_GROUP,
            "words": nemo.write(plan).files[nemo.OVERRIDES].splitlines(),
        }
        for plan in plans
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / "nemo_reads.py"], input=json.dumps(asked), text=True,
        env=os.environ | {"PYTHONPATH": str(BRIDGE)}, capture_output=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(named, json.loads(done.stdout), strict=True))
