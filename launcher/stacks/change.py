"""What a profile of a training software is made of: changes by year, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Change:
    """Habits since a year, with their source."""

    since: int
    source: str
    habits: Mapping[str, Any]


def since(year: int, source: str, **habits: Any) -> Change:
    """Return a change of that year; 0: from the beginning."""
    return Change(year, source, MappingProxyType(habits))


EAGER = since(
    0,
    "PyTorch without torch.compile: each operator of RMSNorm, rotary positions, SwiGLU and cross-entropy is a kernel",
    compile=False,
    compiles_loss=True,
    expandable_segments=False,
    fused_norm=False,
    fused_rotary=False,
    fused_activation=False,
    fused_loss=False,
    joint_qkv=False,
)
FLASH = (
    since(0, "FlashAttention 1 (Dao et al. 2022)", flash_version=1),
    since(0, "flash_attn_interface.py, the package's kernels in CUDA", triton_attention=False),
    since(2023, "FlashAttention 2 is of July 2023 (Dao 2023)", flash_version=2),
)
JOINT_GATE = since(
    0,
    "one product for gate and up projections, or one sum of both gradients of their input; "
    "megatron/core/tensor_parallel/layers.py, LinearWithGradAccumulationAndAsyncCommunication, gathers again",
    joint_gate=True,
    gathers_again=True,
)
LAYER_GATHERS = since(
    0,
    "FSDP: each transformer layer is a unit with one flat message, gathered ahead (Zhao et al. 2023)",
    gathers_per_layer=1,
    overlap_gathers=True,
    copies_gathered=False,
    gathers_every_pass=False,
)
COPIED_GATHERS = since(
    0,
    "FSDP2 shards each parameter by itself: torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py, "
    "foreach_all_gather_copy_out",
    copies_gathered=True,
)
PLAIN_REDUCTION = since(
    0,
    "gradients are in buffers from the start, reduced in the dtype in which they are held (Li et al. 2020), and "
    "scattered by ZeRO (Rajbhandari et al. 2020, section 7)",
    widens_sums=False,
    reduces_whole=False,
    late_gradients=False,
    overlap_replicated=True,
)
OPTIMIZER_ON_GPU = since(
    0,
    "no option, or one that moves parameters too (PyTorch's CPUOffloadPolicy: torch/distributed/fsdp/_fully_shard/"
    "_fsdp_api.py; InternEvo's HybridZeroOptimizer has cpu_offload, and no key sets it)",
    offload_stages=(),
)
FP8_CASTS = since(
    0,
    "torchao/float8/float8_linear.py casts weights in each pass; autograd keeps inputs in their dtype",
    caches_fp8=False,
)
FLAT_MESSAGES = since(
    0,
    "gradients and weights are joined before they travel: torch's DDP in buckets of 25 MB (Li et al. 2020), DeepSpeed "
    "in buckets of 500M elements (runtime/config.py), Megatron-LM in a buffer (core/distributed/"
    "param_and_grad_buffer.py)",
    dp_messages="flat",
)
PIPELINE_MEMORY = since(
    0,
    "PyTorch's caching allocator, set by published out-of-memory verdicts (Hagemann et al. 2023; tests/data); autograd "
    "keeps inputs of stages; pipelines sum the gradients of all micro-batches before they reduce them (FSDP2, "
    "Megatron-LM's core/distributed)",
    pipeline_fragmentation=0.3,
    frees_stage_inputs=False,
    pipeline_shards_gradients=False,
    empty_ends=False,
)
NO_PIPELINE_HABITS = since(
    0,
    "sends and receives pass at once (torch.distributed batch_isend_irecv); layers are shared out by themselves",
    sends_in_turn=False,
    pipeline_groups=0,
    pipeline_ends=(0, 0),
)

# Pipelines of DeepSpeed's engine, whoever calls it.
DEEPSPEED_ENGINE = since(
    0,
    "deepspeed 0.19: runtime/pipe/schedule.py, TrainSchedule (one after the other); runtime/pipe/topology.py, "
    "PipelineParallelGrid (groups model, data, pipe, slice); partition_method type:transformer; "
    "runtime/pipe/engine.py: ZeRO 2 and 3 are incompatible with pipeline parallelism; runtime/zero/offload_config.py: "
    "offload_optimizer, with ZeRO 1, 2 and 3",
    sends_in_turn=True,
    pipeline_groups=4,
    pipeline_ends=(0, 0),
    gathers_per_layer=6,
    overlap_gathers=True,
    schedules=("1f1b",),
    zero_stages=(0, 1, 2, 3),
    pipeline_zero_stages=(0, 1),
    shard_group_stages=(),
    offload_stages=(1, 2, 3),
)
# What it does by itself, where our engine is built by it.
DEEPSPEED_DEFAULTS = since(
    0,
    "deepspeed 0.19: runtime/zero/config.py: overlap_comm is on for ZeRO 3 alone, use_multi_rank_bucket_allreduce sums "
    "buckets whole; without ZeRO engine.py reduces at the boundary (buffered_allreduce_fallback)",
    overlap_grad_reduce=False,
    pipeline_overlap=False,
    reduces_whole=True,
)
DEEPSPEED_GATHERS = (
    since(
        0,
        "deepspeed 0.4: runtime/zero/partition_parameters.py gathers parameter by parameter (a GPT layer has 12); "
        "nothing hides it, measured in Narayanan et al. 2021, table 2 (175B on 384 to 1,536 GPUs)",
        gathers_per_layer=12,
        overlap_gathers=False,
    ),
    since(
        2022,
        "deepspeed 0.6: runtime/zero/partitioned_param_coordinator.py gathers the parameters of each module together, "
        "and ahead",
        gathers_per_layer=6,
        overlap_gathers=True,
    ),
)

# What a profile begins with; later changes replace it.
USUAL = (
    EAGER,
    JOINT_GATE,
    LAYER_GATHERS,
    PLAIN_REDUCTION,
    FLAT_MESSAGES,
    OPTIMIZER_ON_GPU,
    PIPELINE_MEMORY,
    FP8_CASTS,
    *FLASH,
)
