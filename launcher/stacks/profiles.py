"""Profiles of training software: what each does, since when, and where that is written.

A profile is a list of changes by year; the habits of a year are those of all changes up to it. `launcher` is the one
that our engines are built by (launcher/worker): the planner and the truth tests read it, and the worker takes its
choices from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from launcher.stacks.stack import Stack

CURRENT_YEAR = 2025  # the last in which a profile changes
HABITS = tuple(field.name for field in fields(Stack) if field.name not in ("name", "year"))


@dataclass(frozen=True)
class Change:
    """Habits since a year, with their source."""

    since: int
    source: str
    habits: Mapping[str, Any]


def _since(year: int, source: str, **habits: Any) -> Change:
    return Change(year, source, MappingProxyType(habits))


EAGER = _since(
    0,
    "PyTorch without torch.compile: each operator of RMSNorm, rotary positions and cross-entropy is a kernel",
    compile=False,
    fused_norm=False,
    fused_rotary=False,
    fused_loss=False,
    joint_qkv=False,
)
FLASH = (
    _since(0, "FlashAttention 1 (Dao et al. 2022)", flash_version=1),
    _since(2023, "FlashAttention 2 is of July 2023 (Dao 2023)", flash_version=2),
)
NO_PIPELINE_HABITS = _since(
    0, "sends and receives pass at once (torch.distributed batch_isend_irecv)", sends_in_turn=False, pipeline_groups=0
)

LAUNCHER = (
    _since(
        0,
        "launcher/worker/model: transformer.py, norm.py (torch's fused RMSNorm), loss.py; attention by torch's SDPA",
        compile=False,
        fused_norm=True,
        fused_rotary=False,
        fused_loss=False,
        joint_qkv=False,
        flash_version=2,
        calls_dropout=False,
    ),
    _since(
        0,
        "launcher/worker/model/loss.py and tensor_layers.py",
        loss_parallel=True,
        wide_loss=False,
        tp_overlap="none",
        tp_reduce_dtype="train",
    ),
    _since(
        0,
        "launcher/worker/engines/torch_engine.py and parallel/parallelize.py",
        grad_reduce_dtype="fp32",
        fused_accumulation=False,
        overlap_grad_reduce=True,
        pipeline_overlap=True,
    ),
    NO_PIPELINE_HABITS,
    _since(
        0,
        "launcher/worker/model/transformer.py: torch.utils.checkpoint without reentry",
        recompute_stops_early=True,
        recompute_modes=("none", "selective", "full"),
        recompute_fractions=(),
    ),
    _since(
        0,
        "launcher/worker/engines/pipeline.py (torch.distributed.pipelining) and torch_engine.py",
        schedules=("gpipe", "1f1b", "interleaved", "zb_h1"),
        shard_group_stages=(1, 2, 3),
    ),
)
# What differs where the DeepSpeed engine trains.
LAUNCHER_DEEPSPEED = _since(
    0,
    "deepspeed 0.19: runtime/pipe/schedule.py, TrainSchedule (one after the other); runtime/pipe/topology.py, "
    "PipelineParallelGrid (groups model, data, pipe, slice)",
    sends_in_turn=True,
    pipeline_groups=4,
    schedules=("1f1b",),
    shard_group_stages=(),
)

MEGATRON_LM = (
    EAGER,
    *FLASH,
    _since(
        0,
        "megatron/model/transformer.py: bias_dropout_add and attention dropout at any p; query_key_value",
        calls_dropout=True,
        joint_qkv=True,
    ),
    _since(
        0,
        "vocab_parallel_cross_entropy (Shoeybi et al. 2019, section 3) on output.float()",
        loss_parallel=True,
        wide_loss=True,
    ),
    # Trainers that grew out of it join the logits (a published sweep ran out of memory by more than all of them), so
    # that memory is not promised on anything better. Megatron-LM itself: stack.loss_parallel=true.
    _since(
        2023,
        "trainers built on it gather the logits (Hagemann et al. 2023, out-of-memory verdicts)",
        loss_parallel=False,
    ),
    _since(0, "megatron/mpu/layers.py before async_tensor_model_parallel_allreduce", tp_overlap="none"),
    _since(2022, "async_tensor_model_parallel_allreduce (Korthikanti et al. 2022, section 4.2.2)", tp_overlap="wgrad"),
    _since(0, "trainers built on it sum bf16 in fp32 (GPT-NeoX: fp32_allreduce)", tp_reduce_dtype="fp32_from_bf16"),
    _since(2024, "megatron/core/tensor_parallel/mappings.py reduces what it is given", tp_reduce_dtype="train"),
    _since(
        0, "megatron/arguments.py: bf16 sets accumulate_allreduce_grads_in_fp32", grad_reduce_dtype="fp32_from_bf16"
    ),
    _since(
        2023,
        "NeMo and Megatron Bridge, which train by it, hold and reduce bf16 gradients in bf16 (grad_reduce_in_fp32); "
        "Megatron-LM's own script sets fp32: stack.grad_reduce_dtype=fp32_from_bf16",
        grad_reduce_dtype="train",
    ),
    _since(0, "before gradient_accumulation_fusion", fused_accumulation=False),
    _since(2022, "gradient_accumulation_fusion of late 2021", fused_accumulation=True),
    _since(2023, "trainers built on it leave out its CUDA extension, as Llama's family does", fused_accumulation=False),
    _since(2024, "Transformer Engine, which Megatron Core is built on, adds in its products", fused_accumulation=True),
    _since(
        0, "examples/sc21 of 2021: torch's DDP without a pipeline", overlap_grad_reduce=True, pipeline_overlap=False
    ),
    _since(
        2022, "its own DDP, the default (--DDP-impl local), waits (Megatron-LM issue 428)", overlap_grad_reduce=False
    ),
    _since(2024, "--overlap-grad-reduce of September 2023", overlap_grad_reduce=True, pipeline_overlap=True),
    NO_PIPELINE_HABITS,
    _since(0, "megatron/core/tensor_parallel/random.py repeats the whole layer", recompute_stops_early=False),
    _since(
        0,
        "--activations-checkpoint-method uniform",
        recompute_modes=("none", "full"),
        recompute_fractions=(),
        schedules=("1f1b", "interleaved"),
        shard_group_stages=(),
    ),
    _since(
        2022,
        "--recompute-granularity, --recompute-method block with --recompute-num-layers (Korthikanti et al. 2022)",
        recompute_modes=("none", "selective", "full"),
        recompute_fractions=(0.25, 0.5, 0.75),
    ),
    _since(2025, "--num-distributed-optimizer-instances (Megatron Core 0.11)", shard_group_stages=(1,)),
)

MEGATRON_DEEPSPEED = (
    EAGER,
    *FLASH,
    _since(
        0,
        "a fork of the Megatron-LM of 2021",
        calls_dropout=True,
        joint_qkv=True,
        loss_parallel=True,
        wide_loss=True,
        tp_overlap="none",
        tp_reduce_dtype="train",
        fused_accumulation=False,
    ),
    _since(
        2023,
        "microsoft/Megatron-DeepSpeed, rebased on the Megatron-LM of 2023: async_tensor_model_parallel_allreduce, "
        "gradient_accumulation_fusion",
        tp_overlap="wgrad",
        fused_accumulation=True,
    ),
    _since(0, "deepspeed/runtime/bf16_optimizer.py sums bf16 gradients in fp32", grad_reduce_dtype="fp32_from_bf16"),
    _since(
        0,
        "deepspeed/runtime/zero/config.py: overlap_comm is only on for ZeRO 3; without ZeRO engine.py reduces at the "
        "boundary (buffered_allreduce_fallback), with a pipeline at the end (pipe/engine.py, _exec_reduce_grads)",
        overlap_grad_reduce=False,
        pipeline_overlap=False,
    ),
    LAUNCHER_DEEPSPEED,
    _since(
        0,
        "deepspeed/runtime/activation_checkpointing repeats the whole layer",
        recompute_stops_early=False,
        recompute_modes=("none", "full"),
        recompute_fractions=(),
    ),
)

DEEPSPEED = (
    EAGER,
    *FLASH,
    _since(
        0,
        "Hugging Face models: F.cross_entropy on whole logits.float()",
        calls_dropout=True,
        loss_parallel=False,
        wide_loss=True,
        tp_overlap="none",
        tp_reduce_dtype="train",
    ),
    _since(0, "deepspeed/runtime/config.py: communication_data_type is the training dtype", grad_reduce_dtype="train"),
    _since(
        0,
        "deepspeed/runtime/zero/stage_1_and_2.py: contiguous_gradients, overlap_comm",
        fused_accumulation=False,
        overlap_grad_reduce=True,
        pipeline_overlap=False,
    ),
    LAUNCHER_DEEPSPEED,
    _since(
        0,
        "Hugging Face: torch.utils.checkpoint with reentry",
        recompute_stops_early=False,
        recompute_modes=("none", "full"),
        recompute_fractions=(),
    ),
    _since(2024, "torch.utils.checkpoint without reentry stops early (PyTorch 2.1)", recompute_stops_early=True),
)

FSDP = (
    EAGER,
    *FLASH,
    _since(
        0,
        "F.cross_entropy on whole logits in their dtype (foundation-model-stack), or a kernel (llm-foundry)",
        calls_dropout=False,
        loss_parallel=False,
        wide_loss=False,
        tp_overlap="none",
        tp_reduce_dtype="train",
    ),
    _since(
        0,
        "MixedPrecision(reduce_dtype=bf16) of Composer's PURE and of foundation-model-stack",
        grad_reduce_dtype="train",
    ),
    _since(
        0,
        "autograd adds gradients one by one; reduce-scatter behind the backward pass (Zhao et al. 2023)",
        fused_accumulation=False,
        overlap_grad_reduce=True,
        pipeline_overlap=True,
    ),
    NO_PIPELINE_HABITS,
    _since(
        0,
        "torch.utils.checkpoint before 2.1 repeats the whole layer",
        recompute_stops_early=False,
        recompute_modes=("none", "full"),
    ),
    _since(
        0,
        "no pipeline; ShardingStrategy.HYBRID_SHARD (PyTorch 2.0, FSDP); foundation-model-stack's fms_fsdp recomputes "
        "a share of the layers (selective_checkpointing)",
        schedules=(),
        shard_group_stages=(3,),
        recompute_fractions=(0.25, 0.5, 0.75),
    ),
    _since(2024, "torch.utils.checkpoint without reentry stops early (PyTorch 2.1)", recompute_stops_early=True),
)

TORCHTITAN = (
    *FSDP,
    _since(2025, "torchtitan/models/llama3: nn.RMSNorm, one kernel from PyTorch 2.8 on", fused_norm=True),
    _since(
        0,
        "torchtitan: loss parallel with tp except with disable_loss_parallel; components/loss.py works on pred.float()",
        loss_parallel=True,
        wide_loss=True,
    ),
    _since(0, "torchtitan: mixed_precision_reduce=float32", grad_reduce_dtype="fp32"),
    _since(0, "torch.utils.checkpoint without reentry stops early (PyTorch 2.1)", recompute_stops_early=True),
    _since(
        0,
        "torchtitan/distributed/activation_checkpoint.py: selective by operator, every second layer, or full",
        recompute_modes=("none", "op", "full"),
        recompute_fractions=(0.5,),
    ),
    _since(
        0,
        "torchtitan/distributed/pipeline_parallel.py (schedules of torch.distributed.pipelining); HSDP by "
        "data_parallel_replicate_degree",
        schedules=("gpipe", "1f1b", "interleaved"),
        shard_group_stages=(3,),
    ),
)

INTERNEVO = (
    EAGER,
    *FLASH,
    _since(
        0,
        "InternEvo: flash-attention's rotary and cross-entropy kernels; RMSNorm in PyTorch unless apex is compiled "
        "(internlm/model/modules: RMSNormTorch)",
        fused_rotary=True,
        fused_loss=True,
    ),
    _since(
        0,
        "flash-attention's modules",
        calls_dropout=False,
        loss_parallel=True,
        wide_loss=False,
        tp_overlap="wgrad",
        tp_reduce_dtype="train",
    ),
    _since(
        0,
        "InternEvo: hybrid_zero_optim reduces in the training dtype",
        grad_reduce_dtype="train",
        fused_accumulation=False,
    ),
    _since(0, "InternEvo: overlap_sync_grad", overlap_grad_reduce=True, pipeline_overlap=False),
    NO_PIPELINE_HABITS,
    _since(
        0,
        "InternEvo: activation_checkpoint repeats the whole layer; model.checkpoint is the share of layers "
        "(configs/_base_/models/internlm_20B.py)",
        recompute_stops_early=False,
        recompute_modes=("none", "full"),
        recompute_fractions=(0.25, 0.5, 0.75),
    ),
    _since(
        0,
        "InternEvo: num_chunks above 1 interleaves; zero1.size is a part of dp (configs/_base_/models/internlm_20B.py)",
        schedules=("1f1b", "interleaved"),
        shard_group_stages=(1,),
    ),
)

PADDLENLP = (
    EAGER,
    *FLASH,
    _since(
        0,
        "PaddleNLP: no dropout in Llama; ParallelCrossEntropy with tensor_parallel_output",
        calls_dropout=False,
        loss_parallel=True,
        wide_loss=True,
        tp_overlap="none",
        tp_reduce_dtype="train",
    ),
    _since(
        0, "PaddleNLP: group sharded reduces in the training dtype", grad_reduce_dtype="train", fused_accumulation=False
    ),
    _since(0, "PaddleNLP: sharding_comm_overlap", overlap_grad_reduce=True, pipeline_overlap=True),
    NO_PIPELINE_HABITS,
    _since(
        0,
        "paddle.distributed.fleet.utils.recompute repeats the whole layer; recompute_granularity core_attn",
        recompute_stops_early=False,
        recompute_modes=("none", "selective", "full"),
        recompute_fractions=(),
    ),
    _since(
        0,
        "PaddleNLP: virtual_pp_degree interleaves; sharding_parallel_degree is a part of dp",
        schedules=("1f1b", "interleaved"),
        shard_group_stages=(1, 2, 3),
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
    }
)


def stack_of(name: str, *, year: int = CURRENT_YEAR, engine: str = "torch", **changed: Any) -> Stack:
    """The profile of that name in that year; `changed` habits are set by hand, None leaves one as it is.

    `engine` says which of the launcher's own engines trains. torch.compile fuses norm, rotary positions and loss.
    """
    changes = [change for change in PROFILES[name] if change.since <= year]
    if name == "launcher" and engine == "deepspeed":
        changes.append(LAUNCHER_DEEPSPEED)
    habits: dict[str, Any] = {}
    for change in changes:
        habits |= change.habits
    by_hand = {habit: value for habit, value in changed.items() if value is not None}
    if by_hand.get("compile"):
        habits |= {"fused_norm": True, "fused_rotary": True, "fused_loss": True}
    return Stack(name=name, year=year, **(habits | by_hand))


def sources_of(name: str, *, year: int = CURRENT_YEAR) -> dict[str, str]:
    """Return the source of each property of a profile."""
    return {habit: c.source for c in PROFILES[name] if c.since <= year for habit in c.habits}
