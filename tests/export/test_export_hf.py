"""transformers' own parser reads the exported TrainingArguments, and counts the plan's batch."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from export_plans import PLANS, plan_of

from launcher.export import accelerate, hf
from launcher.export.readers import read_from
from launcher.planner.record import Plan

pytestmark = pytest.mark.skipif(
    not find_spec("accelerate") or not find_spec("transformers"), reason="no transformers or accelerate"
)

SAID = [name for name in PLANS if not list(hf.TARGET.cannot((plan := plan_of(name)).job, plan.layout))]


def read(plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """TrainingArguments as a script reads them; `use_cpu`, since no GPU is here."""
    import transformers

    for name, text in hf.write(plan).files.items():
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    data = json.loads((folder / hf.ARGUMENTS).read_text()) | {"use_cpu": True}
    (parsed,) = transformers.HfArgumentParser(transformers.TrainingArguments).parse_dict(data)
    return parsed


@pytest.mark.parametrize("name", SAID)
def test_transformers_reads_batch_length_numbers_and_learning_rate(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(name)
    found = read(plan, tmp_path, monkeypatch)
    layout = plan.layout
    assert found.per_device_train_batch_size == layout.micro_batch
    batch = found.per_device_train_batch_size * found.gradient_accumulation_steps * layout.dp
    assert batch == plan.job.training.global_batch
    assert (found.bf16, found.max_steps, found.learning_rate) == (True, 80, 2e-3)
    assert found.lr_scheduler_type == "cosine_with_min_lr" and found.lr_scheduler_kwargs == {"min_lr": 2e-4}
    assert (found.adam_beta2, found.weight_decay, found.max_grad_norm, found.seed) == (0.95, 0.1, 1.0, 1234)
    assert (found.deepspeed is not None) == (name == "zero1")


def test_deepspeeds_json_is_the_one_that_transformers_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    plan = plan_of("zero1")
    found = read(plan, tmp_path, monkeypatch)
    config = found.hf_deepspeed_config.config
    assert config["gradient_accumulation_steps"] == found.gradient_accumulation_steps
    assert config["zero_optimization"]["stage"] == 1
    assert json.loads((tmp_path / accelerate.DEEPSPEED_CONFIG).read_text())["bf16"] == {"enabled": True}


def test_recomputation_is_said_once_by_fsdp_or_by_the_trainer() -> None:
    with_fsdp = json.loads(hf.write(plan_of("zero3")).files[hf.ARGUMENTS])
    without = json.loads(hf.write(plan_of("plain dp", "layout.recompute=full")).files[hf.ARGUMENTS])
    assert (with_fsdp["gradient_checkpointing"], without["gradient_checkpointing"]) == (False, True)
    assert "fsdp_activation_checkpointing: true" in hf.write(plan_of("zero3")).files[accelerate.CONFIG]


def test_kernels_that_a_plan_counts_as_fused_are_ligers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, compiled, eager = (
        read(plan_of("zero3", "stack=fsdp", *words), tmp_path, monkeypatch)
        for words in (("stack.fused_norm=true", "stack.fused_loss=true"), ("stack.compile=true",), ())
    )
    kernels = {"rms_norm": True, "cross_entropy": True, "rope": False, "swiglu": False}
    assert (fused.use_liger_kernel, fused.torch_compile) == (True, False)
    assert fused.liger_kernel_config == {**kernels, "fused_linear_cross_entropy": False}
    assert (compiled.use_liger_kernel, compiled.torch_compile) == (False, True)
    assert (eager.use_liger_kernel, eager.torch_compile) == (False, False)


AUTO = {"bf16": {"enabled": "auto"}, "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": 2, "overlap_comm": True}}  # fmt: skip
MADE: dict[str, dict[str, Any]] = {
    "plain": {"gradient_checkpointing": True},
    "full_shard": {"fsdp": "full_shard auto_wrap"},
    "shard_grad_op": {"fsdp": "shard_grad_op"},
    "fsdp 2": {"fsdp": True, "fsdp_config": {"reshard_after_forward": False, "activation_checkpointing": True}},
    "hybrid": {"fsdp": ["hybrid_shard"], "fsdp_config": {"version": 1}},
    "deepspeed": {"deepspeed": AUTO},
    "liger": {"use_liger_kernel": True},
}


@pytest.mark.parametrize("name", MADE)
def test_arguments_that_transformers_writes_are_read_as_it_takes_them(name: str, tmp_path: Path) -> None:
    import transformers

    if name == "deepspeed":
        pytest.importorskip("deepspeed")
    given = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": True, "per_device_train_batch_size": 2,
             "gradient_accumulation_steps": 4, **MADE[name]}  # fmt: skip
    (made,) = transformers.HfArgumentParser(transformers.TrainingArguments).parse_dict(given)
    (tmp_path / "args.json").write_text(made.to_json_string())
    found = read_from(tmp_path / "args.json")
    assert (found.target, found.accumulation, found.keys["layout.micro_batch"]) == ("hf", 4, 2)
    assert found.keys["train.dtype"] == "bf16"
    plugin = getattr(made, "fsdp_plugin_args", None) or {}
    reshards = plugin.get("reshard_after_forward")
    stage = {True: 3, False: 2, "hybrid_shard": 3, None: 0}[reshards]
    if name == "deepspeed":
        stage = made.hf_deepspeed_config.config["zero_optimization"]["stage"]
    assert found.keys["layout.zero_stage"] == stage
    assert found.keys.get("layout.shard_group") == ("node" if reshards == "hybrid_shard" else None)
    recomputes = made.gradient_checkpointing or plugin.get("activation_checkpointing", False)
    assert found.keys["layout.recompute"] == ("full" if recomputes else "none")
    assert ("stack.fused_norm" in found.keys) == made.use_liger_kernel
