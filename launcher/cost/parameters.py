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
    kv_heads = -(-model.kv_heads // tp)
    queries = model.attention_hidden // tp
    qkv = queries + 2 * kv_heads * model.head_dim
    attention = model.hidden * (qkv + queries) + ((qkv + model.hidden) if model.bias else 0)
    norms = 2 * model.norm_params
    mlp = _mlp_parameters(model, model.ffn_hidden // tp)
    if not model.num_experts:
        return RankParameters(float(attention + mlp + norms))
    shared = _mlp_parameters(model, model.shared_ffn_hidden // tp) if model.shared_ffn_hidden else 0
    everywhere = float(attention + norms + model.router_params + shared)
    return RankParameters(everywhere, float(mlp * (model.num_experts // ep)))


def _mlp_parameters(model: Model, width: int) -> int:
    matrices = 3 if model.gated_mlp else 2
    return matrices * model.hidden * width + (((matrices - 1) * width + model.hidden) if model.bias else 0)


def stage_parameters(model: Model, layers: int, dense_layers: int, *, tp: int, ep: int) -> RankParameters:
    """Parameters on one rank of `layers` layers, of which `dense_layers` have an MLP in place of experts."""
    one = layer_parameters(model, tp=tp, ep=ep)
    if not dense_layers:
        return RankParameters(layers * one.dense, layers * one.experts)
    shared = _mlp_parameters(model, model.shared_ffn_hidden // tp) if model.shared_ffn_hidden else 0
    more = _mlp_parameters(model, model.dense_width // tp) - shared - model.router_params
    return RankParameters(layers * one.dense + dense_layers * more, (layers - dense_layers) * one.experts)


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
