"""Counts the parameters of a Hugging Face model from its config.json."""

from __future__ import annotations

from launcher.model.hf_shape import Family, HfShape


def parameters(family: Family, shape: HfShape) -> int:
    """All parameters."""
    table = shape.vocab * shape.hidden
    learned = family.fixed["positions"] == "learned"
    positions = (shape.positions + family.more_positions) * shape.hidden if learned else 0
    norm = family.vectors * shape.hidden
    layer = _attention(family, shape) + shape.norms * norm
    dense = shape.layers if not shape.experts else shape.dense_layers
    mlps = dense * _mlp(family, shape, shape.ffn) + (shape.layers - dense) * _experts(family, shape)
    ends = norm * (2 if family.embedding_norm else 1) + (shape.vocab if shape.head_bias else 0)
    return table + positions + shape.layers * layer + mlps + ends + (0 if shape.tied else table)


def _attention(family: Family, shape: HfShape) -> int:
    """Projections, their biases, and the norms inside."""
    if shape.latent:
        return _latent_attention(shape)
    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = shape.hidden * (2 * width + 2 * kv_width)
    biases = (width + 2 * kv_width if shape.qkv_bias else 0) + (shape.hidden if shape.out_bias else 0)
    norms = width + kv_width if family.wide_qk_norm else 2 * shape.head_dim * family.vectors
    return weights + biases + (norms if shape.qk_norm else 0) + (shape.heads if family.sinks else 0)


def _latent_attention(shape: HfShape) -> int:
    """DeepSeek-AI 2024 (https://arxiv.org/abs/2405.04434), section 2.1: low-rank keys, values and queries."""
    q_rank, kv_rank, plain, rotary, value = shape.latent
    wide = shape.heads * (plain + rotary)
    queries = shape.hidden * q_rank + q_rank + q_rank * wide if q_rank else shape.hidden * wide
    keys = shape.hidden * (kv_rank + rotary) + kv_rank + kv_rank * shape.heads * (plain + value)
    biases = q_rank + kv_rank + rotary + shape.hidden if shape.qkv_bias else 0
    return queries + keys + shape.heads * value * shape.hidden + biases


def _mlp(family: Family, shape: HfShape, width: int) -> int:
    matrices = 3 if family.fixed["gated_mlp"] else 2
    biases = (matrices - 1) * width + shape.hidden if shape.mlp_bias else 0
    return matrices * shape.hidden * width + biases


def _experts(family: Family, shape: HfShape) -> int:
    router = shape.hidden * shape.experts + (shape.experts if family.router_bias else 0)
    shared = _mlp(family, shape, shape.shared_ffn) if shape.shared_ffn else 0
    gate = shape.hidden if shape.shared_ffn and family.shared_gate else 0
    return router + shape.experts * _mlp(family, shape, shape.expert_ffn) + shared + gate
