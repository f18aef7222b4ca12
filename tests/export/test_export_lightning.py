"""Lightning's own classes take what the exported module gives them, and hold the plan."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from export_plans import PLANS, plan_of

from launcher.export import lightning
from launcher.planner.record import Plan

# Asked without importing it, which takes 2 s, in every process that collects tests.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="no Lightning here")

SAID = [name for name in PLANS if not list(lightning.cannot((plan := plan_of(name)).job, plan.layout))]


def module_of(plan: Plan, folder: Path) -> Any:
    for name, text in lightning.write(plan).files.items():
        (folder / name).write_text(text)
    spec = importlib.util.spec_from_file_location("plan_trainer", folder / "plan_trainer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plans_without_pipeline_context_and_experts_are_said() -> None:
    assert set(SAID) == {"plain dp", "zero1", "zero2", "zero3", "zero3 with tp"}


@pytest.mark.parametrize("name", SAID)
def test_the_trainer_has_the_plans_devices_batch_and_precision(name: str, tmp_path: Path) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    plan = plan_of(name)
    module = module_of(plan, tmp_path)
    on_cpu = {"accelerator": "cpu", "strategy": DDPStrategy(), "logger": False, "enable_checkpointing": False}
    trainer = module.make_trainer(**on_cpu)
    assert (trainer.num_devices, trainer.num_nodes) == (plan.placement.ranks_per_node, plan.placement.num_nodes)
    assert trainer.accumulate_grad_batches == plan.layout.num_micro_batches(plan.job.training.global_batch)
    assert trainer.precision == "bf16-mixed"
    assert plan.layout.micro_batch == module.MICRO_BATCH


def test_each_way_to_shard_has_its_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = {name: module_of(plan_of(name), tmp_path).make_strategy() for name in SAID if name != "zero1"}
    assert type(made["plain dp"]).__name__ == "DDPStrategy"
    assert made["zero2"].sharding_strategy.name == "SHARD_GRAD_OP"
    assert made["zero3"].sharding_strategy.name == "FULL_SHARD"
    both = made["zero3 with tp"]
    assert (both._data_parallel_size, both._tensor_parallel_size) == (4, 4)


def test_sums_of_another_dtype_are_fsdps_mixed_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    for words, dtype in (("train", None), ("fp32", torch.float32)):
        plan = plan_of("zero3", "stack=fsdp", f"stack.grad_reduce_dtype={words}")
        mixed = module_of(plan, tmp_path).make_strategy().mixed_precision
        assert (mixed and mixed.reduce_dtype) == dtype


def test_zero1_is_deepspeeds_with_our_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    monkeypatch.chdir(tmp_path)
    try:
        strategy = module_of(plan_of("zero1"), tmp_path).make_strategy()
    except ImportError as error:
        pytest.skip(f"Lightning does not see DeepSpeed here: {error}")
    assert strategy.config["zero_optimization"]["stage"] == 1
