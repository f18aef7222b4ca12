"""Parameters that one rank holds, by pipeline stage."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.model import Model

VOCAB_MULTIPLE = 128  # Megatron pads the vocabulary to this times tp, for GEMM alignment


def padded_vocab(model: Model, tp: int) -> int:
    """Vocabulary rows of the tables, as padded for tensor parallelism."""
    multiple = VOCAB_MULTIPLE * tp if model.vocab > 16 * VOCAB_MULTIPLE else tp
    return -(-model.vocab // multiple) * multiple


@dataclass(frozen=True)
class RankParameters:
    """Parameters of one rank: those every data-parallel peer has too, and its experts' (shared by dp / ep peers).

    `ends`: those of `dense` that belong to the embedding, the head and the final norm.
    """

    dense: float
    experts: float = 0.0
    ends: float = 0.0

    @property
    def total(self) -> float:
        return self.dense + self.experts


def layer_parameters(model: Model, *, tp: int, ep: int) -> RankParameters:
    """One layer's parameters on one rank: matrices divided by tp, norms and output biases whole, experts by ep."""
    if not model.num_experts:
        return RankParameters(float(_plain_layer(model, model.ffn_hidden, tp=tp)))
    everywhere = _plain_layer(model, model.shared_ffn_hidden, tp=tp) + model.router_params
    expert = model.mlp_parameters(model.ffn_hidden // tp)
    return RankParameters(float(everywhere), float(expert * (model.num_experts // ep)))


def _plain_layer(model: Model, ffn_hidden: int, *, tp: int) -> int:
    """Attention, norms and one MLP of this width over tp."""
    keys = -(-model.kv_heads // tp) * model.head_dim
    attention = model.attention_parameters(model.attention_hidden // tp, keys)
    return attention + 2 * model.norm_params + model.mlp_parameters(ffn_hidden // tp)


def stage_parameters(model: Model, layers: int, dense_layers: int, *, tp: int, ep: int) -> RankParameters:
    """Parameters on one rank of `layers` layers, of which `dense_layers` have an MLP in place of experts."""
    one = layer_parameters(model, tp=tp, ep=ep)
    sparse = layers - dense_layers
    dense = dense_layers * _plain_layer(model, model.dense_width, tp=tp) if dense_layers else 0
    return RankParameters(sparse * one.dense + dense, sparse * one.experts)


def layer_tensors(model: Model, *, joint_qkv: bool) -> int:
    """Parameter tensors of a layer without experts: the weights of its products, their biases, the norms."""
    products = (2 if joint_qkv else 4) + (3 if model.gated_mlp else 2)
    norms = 4 if model.norm == "layernorm" else 2
    return products * (2 if model.bias else 1) + norms


def end_parameters(model: Model, *, tp: int, first: bool, last: bool) -> float:
    """Embedding on the first stage, head and final norm on the last; a tied table lives on both (Megatron-LM)."""
    table = padded_vocab(model, tp) // tp * model.hidden
    positions = model.seq_len * model.hidden if model.positions == "learned" else 0
    count = table + positions if first else 0
    if last:
        count += model.norm_params + (0 if model.tied_embeddings and first else table)
    return float(count)
