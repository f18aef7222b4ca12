"""Megatron Bridge's overrides are fields that its configuration has, and say the plan."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from export_plans import PLANS, plan_of

from launcher.export import nemo

OPTIONS = Path(__file__).parent / "options" / "nemo.csv"
SAID = [name for name in PLANS if not list(nemo.TARGET.cannot((plan := plan_of(name)).job, plan.layout))]


@pytest.mark.parametrize("name", SAID)
def test_every_override_is_a_field_that_is_documented(name: str) -> None:
    with OPTIONS.open() as file:
        documented = {row["option"] for row in csv.DictReader(file)}
    assert {key for key, _ in nemo.settings(plan_of(name))} <= documented


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
