"""Counts the parameters of a Hugging Face model from its config.json."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.model.hf_families import Family


@dataclass(frozen=True, kw_only=True)
class HfShape:
    """The numbers of a config.json. `latent`: ranks and widths of multi-latent attention, empty without it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    positions: int
    tied: bool
    attention_bias: bool
    eps: float
    theta: float
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    dense_layers: int = 0
    latent: tuple[int, ...] = ()


def parameters(family: Family, shape: HfShape) -> int:
    """All parameters."""
    table = shape.vocab * shape.hidden
    positions = shape.positions * shape.hidden if family.fixed["positions"] == "learned" else 0
    norm = shape.hidden * (2 if family.fixed["norm"] == "layernorm" else 1)
    layer = _attention(family, shape) + family.norms * norm
    dense = shape.layers if not shape.experts else shape.dense_layers
    mlps = dense * _mlp(family, shape, shape.ffn) + (shape.layers - dense) * _experts(family, shape)
    return table + positions + shape.layers * layer + mlps + norm + (0 if shape.tied else table)


def _attention(family: Family, shape: HfShape) -> int:
    """Projections, their biases, and the norms inside."""
    if shape.latent:
        return _latent_attention(shape)
    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = shape.hidden * (2 * width + 2 * kv_width)
    biases = (width + 2 * kv_width) if shape.attention_bias or family.qkv_bias else 0
    biases += shape.hidden if shape.attention_bias else 0
    return weights + biases + (2 * shape.head_dim if family.qk_norm else 0)


def _latent_attention(shape: HfShape) -> int:
    """DeepSeek-AI 2024 (https://arxiv.org/abs/2405.04434), section 2.1: low-rank keys, values and queries."""
    q_rank, kv_rank, plain, rotary, value = shape.latent
    wide = shape.heads * (plain + rotary)
    queries = shape.hidden * q_rank + q_rank + q_rank * wide if q_rank else shape.hidden * wide
    keys = shape.hidden * (kv_rank + rotary) + kv_rank + kv_rank * shape.heads * (plain + value)
    return queries + keys + shape.heads * value * shape.hidden


def _mlp(family: Family, shape: HfShape, width: int) -> int:
    matrices = 3 if family.fixed["gated_mlp"] else 2
    biases = (matrices - 1) * width + shape.hidden if family.fixed["bias"] else 0
    return matrices * shape.hidden * width + biases


def _experts(family: Family, shape: HfShape) -> int:
    router = shape.hidden * shape.experts
    shared = _mlp(family, shape, shape.shared_ffn) if shape.shared_ffn else 0
    gate = shape.hidden if shape.shared_ffn and family.shared_gate else 0
    return router + shape.experts * _mlp(family, shape, shape.expert_ffn) + shared + gate
