"""Properties of training software that affect time and memory: frozen values, none inferred from a model."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.model import Training

# A dtype of sums: the training dtype, a dtype by name, or fp32 where the training dtype is bf16.
SUM_DTYPES = ("train", "fp32", "bf16", "fp16", "fp32_from_bf16")
TP_OVERLAPS = ("none", "wgrad", "async")
DP_MESSAGES = ("flat", "per_parameter", "per_owner")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The habits of one training software in one year.

    Kernels. `compile`: torch.compile fuses what is memory-bound between products; `compiles_loss`: and the loss.
    `fused_norm`, `fused_rotary`, `fused_activation`, `fused_loss`: RMSNorm, rotary positions, a gated activation and
    cross-entropy take one kernel each way, not one an operator.
    `joint_qkv`: values are a view of one projection's output, which keeps queries and keys from before their rotation
    alive. `flash_version`: the newest FlashAttention. `triton_attention`: its version 1 is the kernel in Triton, not
    that in CUDA. `calls_dropout`: dropout kernels run at any probability where scores are kept in memory.

    Tensor parallelism. `loss_parallel`: the loss works on the vocabulary as tp divides it. `wide_loss`: on fp32 copies
    of the logits that autograd keeps. `joint_gate`: gate and up projections share a collective for their input and one
    for its gradient. `gathers_again`: with sequence parallelism the backward pass gathers the projections' inputs
    again; else they stay gathered. `tp_overlap`: no collectives overlap with products (none), those of
    the backward pass with weight gradients (wgrad), or all of them in pieces (async). `tp_reduce_dtype`: of sums
    without sequence parallelism.

    Gradients. `grad_reduce_dtype`: in which they are held and reduced. `widens_sums`: reduced in fp32, as copies of
    what is held. `reduces_whole`: with ZeRO 1 and 2 too every rank gets all sums (an all-reduce), and keeps its share.
    `late_gradients`: allocated by the first backward pass, one by one, and not as a buffer at the start.
    `fused_accumulation`: products add to the sums over micro-batches themselves. `overlap_grad_reduce`: reduced behind
    the backward pass, `pipeline_overlap`: with a pipeline too, and `overlap_replicated`: where no ZeRO stage shards
    anything too. `dp_messages`: gradients and weights of ZeRO 0 to 2 travel in buffers of many parameters (flat),
    one by one (per_parameter), or in one message for each rank that owns a shard (per_owner). `gathers_per_layer`: in
    how many messages ZeRO-3 gathers a layer's weights, and `overlap_gathers` whether it does so, and reduces gradients,
    behind compute. `copies_gathered`: each gathered message is copied into the parameters. `gathers_every_pass`: with
    ZeRO-2 weights are gathered before each forward pass and kept until its backward pass ends, not once a step.

    Allocator. `expandable_segments`: PyTorch's grows its segments, so that freed blocks join.

    Products in fp8. `caches_fp8`: weights and their transposes stay in fp8 from a step's first micro-batch on.

    Pipeline. `sends_in_turn`: a rank sends and receives one after the other. `pipeline_groups`: communicators next to
    those of the axes. `pipeline_fragmentation`: what the allocator cannot reuse, as a share of activations, as forward
    and backward passes of different micro-batches take turns. `frees_stage_inputs`: no stage keeps its input.
    `pipeline_shards_gradients`: with ZeRO-2 gradients are reduced, and only shards kept, after each group of
    micro-batches that passes a virtual stage. `empty_ends`: the first virtual stage may hold the embedding alone, the
    last the head. `pipeline_ends`: as how many layers the embedding and the head count where the software shares
    layers out evenly.

    `schedules`: the orders of micro-batches that it has; none: it has no pipeline.

    Sharding. `zero_stages`, `pipeline_zero_stages`: the ZeRO stages that it has, without and with a pipeline.
    `shard_group_stages`: those that it can run over a part of dp, with replicas across. `offload_stages`: those with
    which it can have the optimizer, and no more, on the host.

    Sequences. `sequence_parallel`: tensor-parallel ranks can shard what is between the products. `context_parallel`:
    ranks can divide a sequence.

    Recomputation. `recompute_modes`: the forms that the software has. `recompute_fractions`: shares of the layers, less
    than all, that a search lets it recompute whole. `recompute_stops_early`: repeating a layer ends
    with the last operator that saves inputs for the backward pass.
    """

    name: str
    year: int
    compile: bool
    compiles_loss: bool
    fused_norm: bool
    fused_rotary: bool
    fused_activation: bool
    fused_loss: bool
    joint_qkv: bool
    flash_version: int
    triton_attention: bool
    calls_dropout: bool
    loss_parallel: bool
    wide_loss: bool
    joint_gate: bool
    gathers_again: bool
    tp_overlap: str
    tp_reduce_dtype: str
    grad_reduce_dtype: str
    widens_sums: bool
    reduces_whole: bool
    late_gradients: bool
    fused_accumulation: bool
    overlap_grad_reduce: bool
    pipeline_overlap: bool
    overlap_replicated: bool
    dp_messages: str
    gathers_per_layer: int
    overlap_gathers: bool
    copies_gathered: bool
    gathers_every_pass: bool
    expandable_segments: bool
    caches_fp8: bool
    sends_in_turn: bool
    pipeline_groups: int
    pipeline_fragmentation: float
    frees_stage_inputs: bool
    pipeline_shards_gradients: bool
    empty_ends: bool
    pipeline_ends: tuple[int, int]
    recompute_stops_early: bool
    recompute_modes: tuple[str, ...]
    recompute_fractions: tuple[float, ...]
    schedules: tuple[str, ...]
    zero_stages: tuple[int, ...]
    pipeline_zero_stages: tuple[int, ...]
    shard_group_stages: tuple[int, ...]
    offload_stages: tuple[int, ...]
    sequence_parallel: bool
    context_parallel: bool

    def reduces_in(self, training: Training) -> str:
        """Dtype in which gradients are held, and reduced if they are not widened for it."""
        return sum_dtype(self.grad_reduce_dtype, training.dtype)

    def sums_in(self, training: Training) -> str:
        """Dtype of the messages that reduce gradients."""
        return "fp32" if self.widens_sums else self.reduces_in(training)

    def overlaps_reduction(self, *, zero_stage: int, pipeline: bool) -> bool:
        """Whether gradients are reduced behind the backward pass."""
        behind = self.overlap_grad_reduce and (self.overlap_replicated or zero_stage > 0)
        return behind and (self.pipeline_overlap or not pipeline)

    def tensor_parallel_dtype(self, training: Training, *, sequence_parallel: bool) -> str:
        """Dtype in which tensor-parallel partial sums are reduced; sequence parallelism never widens them."""
        return training.dtype if sequence_parallel else sum_dtype(self.tp_reduce_dtype, training.dtype)

    def attention_kernel(self, training: Training) -> str:
        """The kernel that runs: FlashAttention in the version that the software has, the first in CUDA or in Triton."""
        first = training.attention == "flash1" or (training.attention == "flash" and self.flash_version < 2)
        return ("triton" if self.triton_attention else "flash1") if first else training.attention

    def runs_dropout(self, training: Training) -> bool:
        """Whether dropout kernels run: as set, else with separate attention kernels where the software calls them."""
        if training.dropout is not None:
            return training.dropout > 0
        return self.calls_dropout and training.attention in ("math", "fused")


def sum_dtype(rule: str, dtype: str) -> str:
    """Apply a rule of SUM_DTYPES to a training dtype."""
    if rule == "fp32_from_bf16":
        return "fp32" if dtype == "bf16" else dtype
    return dtype if rule == "train" else rule
