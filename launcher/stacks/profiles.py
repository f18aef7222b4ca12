"""Profiles of training software: what each does, since when, and where that is written.

A profile is a list of changes by year; the habits of a year are those of all changes up to it. `launcher` is the one
that our engines are built by (launcher/worker): the planner and the truth tests read it, and the worker takes its
choices from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from launcher.stacks.change import (
    COPIED_GATHERS,
    DEEPSPEED_DEFAULTS,
    DEEPSPEED_ENGINE,
    DEEPSPEED_GATHERS,
    FLAT_MESSAGES,
    FP8_CASTS,
    LAYER_GATHERS,
    NO_PIPELINE_HABITS,
    OPTIMIZER_ON_GPU,
    PIPELINE_MEMORY,
    PLAIN_REDUCTION,
    USUAL,
    Change,
    since,
)
from launcher.stacks.internevo_paddlenlp import INTERNEVO, PADDLENLP
from launcher.stacks.megatron import MEGATRON_DEEPSPEED, MEGATRON_LM, SCALING
from launcher.stacks.stack import Stack

CURRENT_YEAR = 2025  # the last in which a profile changes
HABITS = tuple(field.name for field in fields(Stack) if field.name not in ("name", "year"))


LAUNCHER = (
    since(
        0,
        "launcher/worker/model: transformer.py, norm.py (torch's fused RMSNorm), loss.py; attention by torch's SDPA",
        compile=False,
        compiles_loss=True,
        expandable_segments=False,
        fused_norm=True,
        fused_rotary=False,
        fused_activation=False,
        fused_loss=False,
        joint_qkv=False,
        flash_version=2,
        triton_attention=False,
        calls_dropout=False,
    ),
    since(
        0,
        "launcher/worker/model/loss.py and tensor_layers.py",
        loss_parallel=True,
        wide_loss=False,
        joint_gate=True,
        gathers_again=True,
        tp_overlap="none",
        tp_reduce_dtype="train",
    ),
    LAYER_GATHERS,
    COPIED_GATHERS,
    PLAIN_REDUCTION,
    FLAT_MESSAGES,
    OPTIMIZER_ON_GPU,
    PIPELINE_MEMORY,
    FP8_CASTS,
    since(
        0,
        "launcher/worker/engines/torch_engine.py and parallel/parallelize.py",
        grad_reduce_dtype="fp32",
        fused_accumulation=False,
        overlap_grad_reduce=True,
        pipeline_overlap=True,
    ),
    NO_PIPELINE_HABITS,
    since(
        0,
        "launcher/worker/model/transformer.py: torch.utils.checkpoint without reentry",
        recompute_stops_early=True,
        recompute_modes=("none", "selective", "full"),
        recompute_fractions=(),
    ),
    since(
        0,
        "launcher/worker/engines/pipeline.py (torch.distributed.pipelining) and torch_engine.py",
        schedules=("gpipe", "1f1b", "interleaved", "zb_h1"),
        zero_stages=(0, 1, 2, 3),
        pipeline_zero_stages=(0, 1, 3),
        shard_group_stages=(1, 2, 3),
        sequence_parallel=True,
        context_parallel=True,
    ),
)

DEEPSPEED = (
    *USUAL,
    since(
        0,
        "Hugging Face models: F.cross_entropy on whole logits.float()",
        calls_dropout=True,
        loss_parallel=False,
        wide_loss=True,
        tp_overlap="none",
        tp_reduce_dtype="train",
        sequence_parallel=False,
        context_parallel=False,
    ),
    since(0, "deepspeed/runtime/config.py: communication_data_type is the training dtype", grad_reduce_dtype="train"),
    since(
        0,
        "deepspeed/runtime/zero/stage_1_and_2.py: contiguous_gradients, overlap_comm",
        fused_accumulation=False,
        overlap_grad_reduce=True,
        pipeline_overlap=False,
    ),
    DEEPSPEED_ENGINE,
    *DEEPSPEED_GATHERS,
    since(
        2024,
        "deepspeed 0.12.4: runtime/zero/stage_1_and_2.py, use_multi_rank_bucket_allreduce: buckets are summed whole, "
        "and each rank copies its share (commit 2afa1c7f2, November 2023)",
        reduces_whole=True,
    ),
    since(
        0,
        "Hugging Face: torch.utils.checkpoint with reentry",
        recompute_stops_early=False,
        recompute_modes=("none", "full"),
        recompute_fractions=(),
    ),
    since(2024, "torch.utils.checkpoint without reentry stops early (PyTorch 2.1)", recompute_stops_early=True),
)

FSDP = (
    *USUAL,
    since(
        0,
        "F.cross_entropy on whole logits in their dtype (foundation-model-stack), or a kernel (llm-foundry)",
        calls_dropout=False,
        loss_parallel=False,
        wide_loss=False,
        tp_overlap="none",
        tp_reduce_dtype="train",
    ),
    since(
        0,
        "llm-foundry of 2023, MPTConfig: attn_impl is triton by default, as the kernel in CUDA has no ALiBi",
        triton_attention=True,
    ),
    since(
        0,
        "MixedPrecision(reduce_dtype=bf16) of Composer's PURE and of foundation-model-stack",
        grad_reduce_dtype="train",
    ),
    since(
        0,
        "autograd adds gradients one by one; reduce-scatter behind the backward pass (Zhao et al. 2023)",
        fused_accumulation=False,
        overlap_grad_reduce=True,
        pipeline_overlap=True,
    ),
    NO_PIPELINE_HABITS,
    since(
        0,
        "torch.utils.checkpoint before 2.1 repeats the whole layer",
        recompute_stops_early=False,
        recompute_modes=("none", "full"),
    ),
    since(
        0,
        "no pipeline; ShardingStrategy.HYBRID_SHARD (PyTorch 2.0, FSDP); foundation-model-stack's fms_fsdp recomputes "
        "a share of the layers (selective_checkpointing)",
        schedules=(),
        shard_group_stages=(3,),
        recompute_fractions=(0.25, 0.5, 0.75),
    ),
    since(
        0,
        "torch/distributed/fsdp/api.py, SHARD_GRAD_OP: parameters are unsharded before forward and sharded again after "
        "backward (FSDP2: reshard_after_forward=False)",
        gathers_every_pass=True,
    ),
    since(
        0,
        "torch/distributed/fsdp/api.py, ShardingStrategy: NO_SHARD, SHARD_GRAD_OP and FULL_SHARD",
        zero_stages=(0, 2, 3),
        pipeline_zero_stages=(),
        sequence_parallel=False,
        context_parallel=False,
    ),
    since(2024, "torch.distributed.tensor.parallel.SequenceParallel (PyTorch 2.3)", sequence_parallel=True),
    since(2024, "torch.utils.checkpoint without reentry stops early (PyTorch 2.1)", recompute_stops_early=True),
)

TORCHTITAN = (
    *FSDP,
    COPIED_GATHERS,
    since(0, "torchtitan: torch's scaled_dot_product_attention, kernels in CUDA", triton_attention=False),
    since(2025, "torchtitan/models/llama3: nn.RMSNorm, one kernel from PyTorch 2.8 on", fused_norm=True),
    since(
        0,
        "torchtitan of 2025: loss parallel with tp except with disable_loss_parallel; components/loss.py works on "
        "pred.float()",
        loss_parallel=True,
        wide_loss=True,
    ),
    since(
        0,
        "train.py of December 2024 (commit 3f20451b): compiling the loss is turned off; it deletes the logits",
        compiles_loss=False,
    ),
    since(2024, "run_llama_train.sh (commit a5e57e4a, October 2024)", expandable_segments=True),
    since(2025, "torchtitan/components/loss.py compiles it (commit bbb1b616, April 2025)", compiles_loss=True),
    since(
        0,
        "torchtitan/models/llama3/infra/parallelize.py: PrepareModuleInput gathers once for all projections, and "
        "autograd keeps what it gathered",
        gathers_again=False,
    ),
    since(0, "torchtitan: mixed_precision_reduce=float32", grad_reduce_dtype="fp32"),
    since(0, "torch.utils.checkpoint without reentry stops early (PyTorch 2.1)", recompute_stops_early=True),
    since(
        0,
        "torchtitan/distributed/activation_checkpoint.py: selective by operator, every second layer, or full",
        recompute_modes=("none", "op", "full"),
        recompute_fractions=(0.5,),
    ),
    since(
        0,
        "torchtitan/distributed/pipeline_parallel.py (schedules of torch.distributed.pipelining); HSDP by "
        "data_parallel_replicate_degree",
        schedules=("gpipe", "1f1b", "interleaved"),
        shard_group_stages=(3,),
        pipeline_zero_stages=(0, 1, 3),
    ),
    since(
        0,
        "torchtitan: sequence parallelism comes with tp, context_parallel_degree",
        sequence_parallel=True,
        context_parallel=True,
    ),
)

PROFILES: Mapping[str, tuple[Change, ...]] = MappingProxyType(
    {
        "launcher": LAUNCHER,
        "megatron_lm": MEGATRON_LM,
        "megatron_deepspeed": MEGATRON_DEEPSPEED,
        "deepspeed": DEEPSPEED,
        "fsdp": FSDP,
        "torchtitan": TORCHTITAN,
        "internevo": INTERNEVO,
        "paddlenlp": PADDLENLP,
        "scaling": SCALING,
    }
)


def stack_of(name: str, *, year: int = CURRENT_YEAR, engine: str = "torch", **changed: Any) -> Stack:
    """The profile of that name in that year; `changed` habits are set by hand, None leaves one as it is.

    `engine` says which of the launcher's own engines trains. torch.compile fuses norm, rotary positions,
    a gated activation and, where it is compiled, the loss.
    `overlap_grad_reduce` set by hand holds with and without ZeRO, `pipeline_shards_gradients` allows ZeRO-2 in a
    pipeline.
    """
    changes = [change for change in PROFILES[name] if change.since <= year]
    if name == "launcher" and engine == "deepspeed":
        changes += [DEEPSPEED_ENGINE, DEEPSPEED_DEFAULTS]
    habits: dict[str, Any] = {}
    for change in changes:
        habits |= change.habits
    by_hand = {habit: value for habit, value in changed.items() if value is not None}
    if "overlap_grad_reduce" in by_hand:
        habits["overlap_replicated"] = by_hand["overlap_grad_reduce"]
    if by_hand.get("compile"):
        loss = by_hand.get("compiles_loss", habits["compiles_loss"])
        habits |= dict.fromkeys(("fused_norm", "fused_rotary", "fused_activation"), True)
        habits["fused_loss"] = loss or habits["fused_loss"]
    if by_hand.get("pipeline_shards_gradients"):
        habits["pipeline_zero_stages"] = tuple(sorted({*habits["pipeline_zero_stages"], 2}))
    return Stack(name=name, year=year, **(habits | by_hand))


def sources_of(name: str, *, year: int = CURRENT_YEAR) -> dict[str, str]:
    """Return the source of each property of a profile."""
    return {habit: c.source for c in PROFILES[name] if c.since <= year for habit in c.habits}
