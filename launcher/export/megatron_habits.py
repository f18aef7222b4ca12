"""Habits of a stack in the options of Megatron-LM, and in the fields of Megatron Bridge, which has its core.

Names: Megatron-LM d98e8a6, megatron/training/arguments.py, megatron/core/model_parallel_config.py; Megatron Bridge
067f987, src/megatron/bridge/models/gpt_provider.py, src/megatron/bridge/training/comm_overlap.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.planner.habits import NONE, SEGMENTS, Entry, Option, PartOf, Setup, Table, lacking

Values = Mapping[Any, Mapping[str, Any]]
# What the core has no option for.
CORE: Mapping[str, Entry] = {
    **lacking("torch.compile fuses single operators there (megatron/core/jit.py)", "compile", "compiles_loss"),
    **lacking("Transformer Engine's norm, with its layers (--transformer-impl)", "fused_norm"),
    **lacking("one linear_qkv (core/transformer/attention.py)", "joint_qkv"),
    **lacking("Transformer Engine takes the FlashAttention that is installed", "flash_version",
              "triton_attention"),
    **lacking("dropout is called at any probability (core/transformer/dot_product_attention.py)", "calls_dropout"),
    **lacking("always on divided logits, in fp32 (core/tensor_parallel/cross_entropy.py)", "loss_parallel",
              "wide_loss"),
    **lacking("one linear_fc1; its input is gathered again (core/tensor_parallel/layers.py)", "joint_gate",
              "gathers_again"),
    **lacking("sums what it is given (core/tensor_parallel/mappings.py)", "tp_reduce_dtype"),
    **lacking("buffers of gradients, made at the start, reduced and scattered as they are "
              "(core/distributed/param_and_grad_buffer.py)",
              "widens_sums", "reduces_whole", "late_gradients", "dp_messages"),
    **lacking("its FSDP's units and buffers (core/distributed/fsdp)", "gathers_per_layer", "copies_gathered",
              "gathers_every_pass"),
    **lacking("Transformer Engine keeps them while is_first_microbatch says so", "caches_fp8"),
    **lacking("core/pipeline_parallel: sends with receives, communicators of the axes, outputs freed alone",
              "sends_in_turn", "pipeline_groups", "frees_stage_inputs"),
    **lacking("PyTorch's allocator, not an option", "pipeline_fragmentation"),
    **lacking("no ZeRO-2 in a pipeline", "pipeline_shards_gradients"),
    **lacking("allowed by any layout of stages, which the layout's options say", "empty_ends"),
    **lacking("core/tensor_parallel/random.py repeats whole layers", "recompute_stops_early"),
    "pipeline_overlap": PartOf("overlap_grad_reduce"),
    "overlap_replicated": PartOf("overlap_grad_reduce"),
}  # fmt: skip
NO_BIAS = "no kernel fuses GELU without a bias (megatron/training/arguments.py, validate_args)"
WITH_ZERO_3 = "with ZeRO-3 overlap_gathers says it"
WITHOUT_ZERO_3 = "without ZeRO-3 overlap_grad_reduce says it"


def megatron(setup: Setup) -> Table:
    """Flags of pretrain_gpt.py."""
    activation = "--no-bias-swiglu-fusion" if setup.gated else "--no-bias-gelu-fusion"
    both = {"--overlap-grad-reduce": True, "--overlap-param-gather": True}
    return {
        **CORE,
        "fused_rotary": _unless("--no-rope-fusion"),
        "fused_activation": _unless(activation) if setup.gated or setup.bias else NO_BIAS,
        "fused_loss": Option(settings={True: {"--cross-entropy-loss-fusion": True}, False: NONE}),
        "fused_accumulation": _unless("--no-gradient-accumulation-fusion"),
        "tp_overlap": _tp_overlap(setup, {"wgrad": NONE, "async": {"--tp-comm-overlap": True}}),
        "grad_reduce_dtype": Option(settings=_sum_flags(setup.dtype)),
        **_overlap(
            setup,
            gathers={True: both, False: NONE},
            gradients={True: {"--overlap-grad-reduce": True}, False: NONE},
        ),
        "expandable_segments": Option(settings=SEGMENTS),
    }


def _unless(flag: str) -> Option:
    """A habit that a flag turns off."""
    return Option(settings={True: NONE, False: {flag: True}})


def _tp_overlap(setup: Setup, values: Values) -> Entry:
    known = {value: settings for value, settings in values.items() if value != "async" or setup.sequence_parallel}
    return Option(settings=known, earlier={"--no-async-tensor-model-parallel-allreduce": "none"})


def _sum_flags(dtype: str) -> Values:
    """--bf16 sums in fp32 by itself, --fp16 in fp16."""
    wide = {"fp32": {"--accumulate-allreduce-grads-in-fp32": True}}
    if dtype == "bf16":
        return {**wide, "bf16": {"--grad-reduce-in-bf16": True}}
    return {**wide, "fp16": NONE} if dtype == "fp16" else {"fp32": NONE}


def _overlap(setup: Setup, *, gathers: Values, gradients: Values) -> dict[str, Entry]:
    """Overlap is off without its flags, where the profile has it on."""
    if setup.zero_stage == 3:
        parts = dict.fromkeys(("overlap_grad_reduce", "pipeline_overlap", "overlap_replicated"), WITH_ZERO_3)
        return {**parts, "overlap_gathers": Option(settings=gathers, absent=False)}
    return {"overlap_grad_reduce": Option(settings=gradients, absent=False), "overlap_gathers": WITHOUT_ZERO_3}


def bridge(setup: Setup, *, overlap_group: bool) -> Table:
    """Overrides of a recipe; `overlap_group`: it has a CommOverlapConfig, which wins over `ddp` and `model`."""
    sharded, names = setup.zero_stage > 0, ("comm_overlap",) if overlap_group else ()
    tp_overlap = "comm_overlap.tp_comm_overlap" if overlap_group else "model.tp_comm_overlap"

    def reduction(on: bool) -> dict[str, Any]:
        gather = on and sharded
        return {f"{name}.overlap_grad_reduce": on for name in ("ddp", *names)} | {
            f"{name}.overlap_param_gather": gather for name in ("ddp", *names)
        }

    overlap = {on: reduction(on) for on in (True, False)}
    return {
        **CORE,
        "fused_rotary": _field("model.apply_rope_fusion"),
        "fused_activation": _field("model.bias_activation_fusion") if setup.gated or setup.bias else NO_BIAS,
        "fused_loss": _field("model.cross_entropy_loss_fusion"),
        "fused_accumulation": _field("model.gradient_accumulation_fusion"),
        "tp_overlap": Option(
            settings={
                "wgrad": {tp_overlap: False},
                **({"async": {tp_overlap: True}} if setup.sequence_parallel else {}),
            },
        ),
        "grad_reduce_dtype": Option(
            settings={setup.dtype: {"ddp.grad_reduce_in_fp32": False}, "fp32": {"ddp.grad_reduce_in_fp32": True}},
        ),
        **_overlap(setup, gathers=overlap, gradients=overlap),
        "expandable_segments": Option(settings=SEGMENTS),
    }


def _field(name: str) -> Option:
    return Option(settings={True: {name: True}, False: {name: False}})
