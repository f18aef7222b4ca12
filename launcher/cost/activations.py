"""Activation bytes that a layer keeps for its backward pass, tensor by tensor (Korthikanti et al. 2022, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.cost.layer import LayerShape, runs_dropout
from launcher.model import Model, Training


@dataclass(frozen=True)
class LayerActivations:
    """Bytes of one layer and one micro-batch on one rank.

    `stored`: kept from forward to backward, by recomputation mode; `working`: more, while the layer is in use.
    """

    stored: float
    working: float


def layer_activations(
    model: Model, training: Training, shape: LayerShape, recompute: str, *, gathered: bool = False
) -> LayerActivations:
    """What a layer stores, and what its recomputation or gradients need on top while it runs.

    `gathered`: with sequence parallelism the projections' inputs stay gathered, instead of being gathered again.
    """
    tokens = shape.sequences * model.seq_len // shape.cp
    sharded = tokens / (shape.tp if shape.sequence_parallel else 1)
    e = training.dtype_bytes
    core = _core(model, training, shape, tokens)
    inputs = tokens if gathered else sharded
    whole = _rest(model, training, shape, tokens, sharded, inputs) + core
    gradients = 2.0 * e * tokens * max(model.ffn_hidden * (2 if model.gated_mlp else 1), 3 * model.hidden) / shape.tp
    if recompute == "full":
        return LayerActivations(e * sharded * model.hidden, whole + gradients)
    if recompute == "selective":
        return LayerActivations(whole - core, core + gradients)
    return LayerActivations(whole, gradients)


def _core(model: Model, training: Training, shape: LayerShape, tokens: int) -> float:
    """The attention core: scores with separate kernels; log-sum-exp and nothing else with FlashAttention."""
    heads = -(-model.heads // shape.tp)
    if training.attention in ("flash", "flash1"):
        return 4.0 * tokens * heads
    scores = float(tokens) * model.seq_len * heads
    e = training.dtype_bytes
    softmax = e + (4 if training.attention == "math" and e < 4 else 0)
    return scores * (softmax + (e + 1 if runs_dropout(model, training) else 0))


def _rest(model: Model, training: Training, shape: LayerShape, tokens: int, sharded: float, inputs: float) -> float:
    """Everything but the core. With LayerNorm, dropout and no gating: the paper's 34 s·b·h at tp = 1."""
    e, hidden, tp = training.dtype_bytes, model.hidden, shape.tp
    norm = e if model.norm == "layernorm" or training.fused_norm else 4 + e
    masks = 2 if runs_dropout(model, training) else 0
    replicated = sharded * hidden * (2 * norm + masks) + inputs * hidden * 2 * e
    qkv = hidden + 2 * model.kv_hidden
    rotated = hidden + model.kv_hidden if model.positions == "rotary" and not training.fused_rotary else 0
    attention = e * tokens * (qkv + rotated + hidden) / tp
    experts = model.experts_per_token if model.num_experts else 1
    mlp = e * tokens * experts * model.ffn_hidden * (4 if model.gated_mlp else 2) / tp
    return replicated + attention + mlp
