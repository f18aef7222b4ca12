"""The keys of `stack.*`: the software by name and year, and habits that a user knows better."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from launcher.schema import AUTO, key
from launcher.stacks.profiles import CURRENT_YEAR, PROFILES, stack_of
from launcher.stacks.stack import DP_MESSAGES, SUM_DTYPES, TP_OVERLAPS, Stack


def _habit(meaning: str, **rule: Any) -> Any:
    return key(AUTO, auto=True, meaning=f"{meaning}; auto: as that software did in that year", **rule)


@dataclass(frozen=True, kw_only=True)
class StackKeys:
    """The user's settings of the training software; None: its profile decides."""

    name: str = key("launcher", choices=tuple(PROFILES), meaning="software that trains; launcher: our own engines")
    year: int = key(
        CURRENT_YEAR, unit="year", minimum=2018, maximum=2100, meaning="year of the software, for what it could do then"
    )
    compile: bool | None = _habit("torch.compile fuses what is memory-bound between products")
    compiles_loss: bool | None = _habit("torch.compile fuses the loss too")
    fused_norm: bool | None = _habit("RMSNorm in one kernel")
    fused_rotary: bool | None = _habit("rotary positions in one kernel")
    fused_activation: bool | None = _habit("SiLU or GELU and the product with the gate in one kernel")
    fused_loss: bool | None = _habit("cross-entropy in one kernel")
    joint_qkv: bool | None = _habit(
        "one projection for queries, keys and values; its output stays alive with the values"
    )
    flash_version: int | None = _habit("the newest FlashAttention", unit="version", minimum=1, maximum=3)
    triton_attention: bool | None = _habit("FlashAttention 1 is the kernel in Triton, not the one in CUDA")
    calls_dropout: bool | None = _habit("dropout kernels run at any probability where scores are kept in memory")
    loss_parallel: bool | None = _habit("the loss works on the vocabulary as tp divides it")
    wide_loss: bool | None = _habit("the loss keeps fp32 copies of the logits")
    joint_gate: bool | None = _habit("gate and up projections share their tensor-parallel collectives")
    gathers_again: bool | None = _habit(
        "with sequence parallelism the backward pass gathers the projections' inputs again; false: they stay gathered"
    )
    tp_overlap: str | None = _habit(
        "tensor-parallel collectives that overlap with products: none, wgrad (backward, with weight gradients) or "
        "async (all of them, in pieces)",
        choices=TP_OVERLAPS,
    )
    tp_reduce_dtype: str | None = _habit("number format of tensor-parallel sums", choices=SUM_DTYPES)
    grad_reduce_dtype: str | None = _habit("number format of gradients as held and reduced", choices=SUM_DTYPES)
    widens_sums: bool | None = _habit("gradients are reduced in fp32, as copies of what is held")
    reduces_whole: bool | None = _habit("with ZeRO 1 and 2 too every rank gets all sums of gradients")
    late_gradients: bool | None = _habit("the first backward pass allocates gradients one by one")
    fused_accumulation: bool | None = _habit("products add weight gradients to their sums themselves")
    overlap_grad_reduce: bool | None = _habit("gradients are reduced behind the backward pass")
    pipeline_overlap: bool | None = _habit("gradients are reduced behind it with a pipeline too")
    overlap_replicated: bool | None = _habit("gradients are reduced behind it where no ZeRO stage shards them too")
    dp_messages: str | None = _habit(
        "gradients and weights of ZeRO 0 to 2 travel in joined buffers (flat), one by one (per_parameter) or in a "
        "message for each owner of a shard (per_owner)",
        choices=DP_MESSAGES,
    )
    gathers_per_layer: int | None = _habit(
        "in how many pieces ZeRO-3 gathers a layer's weights", unit="messages", minimum=1, maximum=64
    )
    overlap_gathers: bool | None = _habit("ZeRO-3 gathers weights, and reduces gradients, behind compute")
    copies_gathered: bool | None = _habit("what ZeRO-3 gathered is copied into each parameter")
    gathers_every_pass: bool | None = _habit("with ZeRO-2 weights are gathered in each forward pass, not once a step")
    expandable_segments: bool | None = _habit("PyTorch's allocator grows its segments: freed blocks join")
    caches_fp8: bool | None = _habit("weights and their transposes stay in fp8, where products are in fp8")
    sends_in_turn: bool | None = _habit("a pipeline's rank sends and receives one after the other")
    pipeline_groups: int | None = _habit(
        "communicators of a pipeline in addition to those of the axes", unit="groups", minimum=0, maximum=64
    )
    pipeline_fragmentation: float | None = _habit(
        "what the allocator cannot reuse in a pipeline, as a share of activations", unit="1", minimum=0, maximum=2
    )
    frees_stage_inputs: bool | None = _habit("no stage of a pipeline keeps its input for the backward pass")
    pipeline_shards_gradients: bool | None = _habit(
        "with ZeRO-2 and a pipeline gradients are reduced, and only shards kept, after each group of micro-batches"
    )
    empty_ends: bool | None = _habit("the first virtual stage may hold the embedding alone, the last the head")
    recompute_stops_early: bool | None = _habit("repeating a layer ends with what the backward pass needs")

    def stack(self, *, engine: str = "torch") -> Stack:
        """The profile with what was set; `engine` says which of our own trains."""
        habits = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("name", "year")}
        return stack_of(self.name, year=self.year, engine=engine, **habits)
