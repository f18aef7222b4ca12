"""The DeepSpeed configuration of a plan, used by our engine and by the export.

Keys: https://www.deepspeed.ai/docs/config-json/ (DeepSpeed 0.19).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.errors import InputError
from launcher.files import read_json
from launcher.planner.habits import (
    NONE,
    Entry,
    Option,
    PartOf,
    Setup,
    Table,
    assumed,
    lacking,
    nested,
    settings_for,
    setup_of,
)
from launcher.planner.options import TrainOptions
from launcher.planner.record import Plan

OURS = ("optimizer", "scheduler", "tensor_parallel", "pipeline")  # the recipe's, and the layout's
FREE = ("steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer")


def full_config(plan: Plan, options: TrainOptions) -> dict[str, Any]:
    """Return the plan's configuration with the user's own of train.ds_config under it.

    Raises InputError with every key of the user's that contradicts the plan. A value `auto` is the plan's.
    """
    own = deepspeed_config(plan, options)
    if options.ds_config is None:
        return own
    theirs = read_json(Path(options.ds_config), remedy="give a DeepSpeed configuration with train.ds_config=FILE")
    if found := list(_conflicts(theirs, own, plan)):
        raise InputError([f"train.ds_config={options.ds_config}: {conflict}" for conflict in found])
    free = {name: theirs[name] for name in FREE if name in theirs}
    return {**_under(theirs, own), **free}


def _conflicts(theirs: Mapping[str, Any], own: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    layout, training = plan.layout, plan.job.training
    for name in OURS:
        if name in theirs:
            yield f"{name} is the plan's and the recipe's: leave it out, and set train.* and layout.*"
    fixed: dict[str, Any] = {**own, "train_batch_size": training.global_batch}
    for dtype in ("bf16", "fp16"):
        fixed[dtype] = {"enabled": training.dtype == dtype}
    for name in FREE:
        fixed.pop(name, None)
    yield from _differences(theirs, fixed, "")
    if layout.zero_stage < 3 and "stage3_gather_16bit_weights_on_model_save" in theirs.get("zero_optimization", {}):
        yield "zero_optimization.stage3_* is for layout.zero_stage=3: leave it out, or pin that stage"


def _differences(theirs: Mapping[str, Any], fixed: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Every value of theirs that is another one in the plan."""
    for name, value in theirs.items():
        planned, full = fixed.get(name), f"{prefix}{name}"
        if isinstance(planned, Mapping) and isinstance(value, Mapping):
            yield from _differences(value, planned, f"{full}.")
        elif name in fixed and value not in (planned, "auto"):
            yield f"{full} is {value} there and {planned} in the plan: leave it out, or pin the layout that you mean"


def _under(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of `above`, and of `below` what is not there; `auto` is nothing."""
    found = {name: value for name, value in below.items() if value != "auto" and name != "train_batch_size"}
    for name, value in above.items():
        inner = found.get(name)
        found[name] = _under(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return found


def deepspeed_config(plan: Plan, options: TrainOptions) -> dict[str, Any]:
    """Return DeepSpeed's configuration for `plan`, with batch sizes per data-parallel rank, never `train_batch_size`.

    Pipeline and tensor degrees have no key: the model code builds its stages, and an `mpu` provides the groups.
    """
    layout, training = plan.layout, plan.job.training
    zero: dict[str, Any] = {"stage": layout.zero_stage}
    if layout.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 0  # also shard small parameters, as the plan assumes
    if layout.offload_optimizer and layout.zero_stage > 0:
        zero["offload_optimizer"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.num_micro_batches(training.global_batch),
        "gradient_clipping": options.grad_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's optimizers on the host too: no compiler needed at run time
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if training.dtype in ("bf16", "fp16"):
        config[training.dtype] = {"enabled": True}
    asked = settings_for(habits(setup_of(plan.job, layout)), assumed(plan.job, layout))
    return _under(config, nested(asked))


def habits(setup: Setup) -> Table:
    """Habits of a stack in its keys (DeepSpeed 0.19: runtime/zero/config.py, runtime/config.py)."""
    return {**_CODE, **_sums(setup), **_overlap(setup), "reduces_whole": _whole(setup)}


_CODE: Mapping[str, Entry] = {
    **lacking("the model's code", "compile", "compiles_loss", "fused_norm", "fused_rotary", "fused_activation",
              "fused_loss", "joint_qkv", "flash_version", "triton_attention", "calls_dropout", "loss_parallel",
              "wide_loss", "joint_gate", "gathers_again", "tp_overlap", "tp_reduce_dtype", "caches_fp8",
              "recompute_stops_early"),
    **lacking("buckets of its engine (runtime/zero)", "late_gradients", "widens_sums", "fused_accumulation",
              "dp_messages", "gathers_per_layer", "copies_gathered", "gathers_every_pass"),
    **lacking("its pipeline engine (runtime/pipe)", "sends_in_turn", "pipeline_groups", "pipeline_fragmentation",
              "frees_stage_inputs", "pipeline_shards_gradients", "empty_ends"),
    "expandable_segments": "a variable of the environment",
}  # fmt: skip
NO_ZERO = "without ZeRO it adds up and reduces in the training dtype, at the step's end"
OVERLAP, WHOLE = "zero_optimization.overlap_comm", "zero_optimization.use_multi_rank_bucket_allreduce"


def _sums(setup: Setup) -> dict[str, Entry]:
    if not setup.zero_stage:
        return {"grad_reduce_dtype": NO_ZERO}
    wide = {
        dtype: {"communication_data_type": dtype, "data_types.grad_accum_dtype": dtype}
        for dtype in ("fp32", "bf16", "fp16")
    }
    return {"grad_reduce_dtype": Option(settings={**wide, setup.dtype: NONE})}


def _overlap(setup: Setup) -> dict[str, Entry]:
    """It is on by itself with ZeRO-3 alone, and off in a pipeline (engine.py)."""
    parts = {key: PartOf("overlap_grad_reduce") for key in ("pipeline_overlap", "overlap_replicated")}
    if setup.zero_stage == 3:
        hidden = "with ZeRO-3 overlap_gathers says it"
        found: dict[str, Entry] = {"overlap_gathers": Option(settings={True: NONE, False: {OVERLAP: False}})}
        return found | lacking(hidden, "overlap_grad_reduce", *parts)
    known: dict[Any, Mapping[str, Any]] = {False: NONE}
    if setup.zero_stage and setup.pp == 1:
        known[True] = {OVERLAP: True}
    return {"overlap_grad_reduce": Option(settings=known, absent=False), "overlap_gathers": "it is for ZeRO-3", **parts}


def _whole(setup: Setup) -> Entry:
    if setup.zero_stage not in (1, 2):
        return "a choice of ZeRO 1 and 2"
    return Option(settings={True: NONE, False: {WHOLE: False}})
