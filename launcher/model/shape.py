"""The shape of a decoder-only transformer, its parameter counts and its FLOPs: the keys of `model.*`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from launcher.errors import InputError
from launcher.schema import AUTO, key

MOST_LAYERS = 10**4  # far above what anybody has, and low enough for a search to end


@dataclass(frozen=True)
class Model:
    """Shape of a transformer. `norm`, `positions` and `bias` say which of the two common families it follows.

    With `num_experts` > 0 every MLP is a mixture of experts, but for those of the first `dense_layers`. A token visits
    `experts_per_token` of them, and shared ones of width `shared_ffn_hidden`.
    """

    name: str = key(meaning="name of the model, as its file's")
    _: KW_ONLY
    hidden: int = key(unit="features", minimum=1, meaning="width of the residual stream")
    layers: int = key(unit="layers", minimum=1, maximum=MOST_LAYERS, meaning="transformer layers")
    heads: int = key(unit="heads", minimum=1, meaning="attention heads (of queries)")
    kv_heads: int = key(
        AUTO, unit="heads", minimum=1, derived=True, meaning="heads of keys and values; auto: as many as heads"
    )
    head_dim: int = key(
        AUTO, unit="features", minimum=1, derived=True, meaning="width of an attention head; auto: hidden / heads"
    )
    ffn_hidden: int = key(
        AUTO, unit="features", minimum=1, derived=True, meaning="width inside the MLP; auto: 4 × hidden"
    )
    gated_mlp: bool = key(False, meaning="three matrices with a gate (SwiGLU), as in Llama's family")
    vocab: int = key(50257, unit="tokens", minimum=1, meaning="vocabulary, padding included", source="GPT-2")
    seq_len: int = key(2048, unit="tokens", minimum=1, meaning="length of a sequence")
    tied_embeddings: bool = key(
        AUTO, derived=True, meaning="the output projection is the embedding; auto: without gated_mlp"
    )
    norm: str = key(
        AUTO, derived=True, choices=("layernorm", "rmsnorm"), meaning="kind of norm; auto: rmsnorm with gated_mlp"
    )
    positions: str = key(
        AUTO, derived=True, choices=("learned", "rotary"), meaning="kind of positions; auto: rotary with gated_mlp"
    )
    bias: bool = key(AUTO, derived=True, meaning="the linear layers have a bias; auto: without gated_mlp")
    num_experts: int = key(0, unit="experts", minimum=0, meaning="experts of each MLP; 0: an MLP without experts")
    experts_per_token: int = key(0, unit="experts", minimum=0, meaning="experts that each token visits")
    shared_ffn_hidden: int = key(
        0, unit="features", minimum=0, meaning="width of the experts that every token visits, all together"
    )
    dense_layers: int = key(
        0,
        unit="layers",
        minimum=0,
        meaning="first layers that have an MLP in place of experts; they are timed as the others",
    )
    dense_ffn_hidden: int = key(
        0,
        unit="features",
        minimum=0,
        meaning="width inside the MLP of dense_layers; 0: that of all experts that a token visits",
    )
    rope_theta: float = key(
        10000.0, unit="1", minimum=1, meaning="base of the rotary angles", source="Su et al. 2021, section 3.4.3"
    )
    norm_eps: float = key(1e-5, unit="1", minimum=0, meaning="added to the variance in a norm")

    def __post_init__(self) -> None:
        """Replace `auto`: what is left open follows the family that the MLP belongs to, GPT-2's or Llama's."""
        llama = self.gated_mlp
        derived = {
            "kv_heads": self.heads,
            "head_dim": max(1, self.hidden // self.heads),
            "ffn_hidden": 4 * self.hidden,
            "tied_embeddings": not llama,
            "norm": "rmsnorm" if llama else "layernorm",
            "positions": "rotary" if llama else "learned",
            "bias": not llama,
        }
        for name, value in derived.items():
            if getattr(self, name) == AUTO:
                object.__setattr__(self, name, value)

    @classmethod
    def from_keys(cls, given: dict[str, Any]) -> Model:
        """Heads divide the width, where it gives theirs."""
        model = cls(**given)
        if given.get("head_dim", AUTO) == AUTO and model.hidden % model.heads:
            uneven = (
                f"model.hidden={model.hidden} must divide by model.heads={model.heads}: change one of them, or set "
                "model.head_dim"
            )
            raise InputError([uneven, *model.problems()])
        return model

    def problems(self) -> list[str]:
        """Return the broken rules between keys: of heads, and of experts."""
        found = []
        if self.positions == "rotary" and self.head_dim % 2:
            found.append(f"model.head_dim={self.head_dim} must be even with rotary positions, which turn pairs")
        if self.heads % self.kv_heads:
            found.append(f"model.heads={self.heads} must divide by model.kv_heads={self.kv_heads}: change one of them")
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            found.append(
                f"model.experts_per_token={self.experts_per_token} must be between 1 and num_experts={self.num_experts}"
            )
        found += [
            f"model.{name}={getattr(self, name)} is about a mixture of experts: set model.num_experts, or take it out"
            for name in ("shared_ffn_hidden", "dense_layers")
            if getattr(self, name) and not self.num_experts
        ]
        if self.num_experts and self.dense_layers >= self.layers:
            found.append(
                f"model.dense_layers={self.dense_layers} leaves no layer with experts: it must be below "
                f"model.layers={self.layers}"
            )
        if self.dense_ffn_hidden and not self.dense_layers:
            found.append("model.dense_ffn_hidden is the width of model.dense_layers: set that, or take it out")
        return found

    @property
    def visited_ffn_hidden(self) -> int:
        """Width of the MLP that a token passes in a layer: of all experts that it visits, with experts."""
        return (
            self.ffn_hidden * self.experts_per_token + self.shared_ffn_hidden if self.num_experts else self.ffn_hidden
        )

    @property
    def dense_width(self) -> int:
        """Width inside the MLP of the first `dense_layers`; 0 without such layers."""
        return (self.dense_ffn_hidden or self.visited_ffn_hidden) if self.dense_layers else 0

    @property
    def attention_hidden(self) -> int:
        """Width of the query projection, of all heads together: `hidden` but where `head_dim` says otherwise."""
        return self.head_dim * self.heads

    @property
    def kv_hidden(self) -> int:
        """Width of the key (and of the value) projection: smaller than the queries' with grouped heads."""
        return self.head_dim * self.kv_heads

    @property
    def attention_params(self) -> int:
        """Parameters of one layer's attention: query, key, value and output projections."""
        return self.attention_parameters(self.attention_hidden, self.kv_hidden)

    def attention_parameters(self, queries: int, keys: int) -> int:
        """Parameters of an attention with a query projection and a key projection of these widths."""
        weights = self.hidden * (2 * queries + 2 * keys)
        return weights + (queries + 2 * keys + self.hidden if self.bias else 0)

    @property
    def mlp_params(self) -> int:
        """Parameters of one MLP (of one expert, with experts)."""
        return self.mlp_parameters(self.ffn_hidden)

    def mlp_parameters(self, width: int) -> int:
        """Parameters of an MLP of this width inside; 0 where there is none."""
        if not width:
            return 0
        matrices = 3 if self.gated_mlp else 2
        return matrices * self.hidden * width + ((matrices - 1) * width + self.hidden if self.bias else 0)

    @property
    def norm_params(self) -> int:
        """Parameters of one norm: a scale, and a shift with LayerNorm."""
        return self.hidden * (2 if self.norm == "layernorm" else 1)

    @property
    def router_params(self) -> int:
        return self.hidden * self.num_experts

    @property
    def layer_params(self) -> int:
        """Parameters of one transformer layer with all its experts."""
        experts = self.mlp_params * max(1, self.num_experts) + self.mlp_parameters(self.shared_ffn_hidden)
        return self.attention_params + experts + self.router_params + 2 * self.norm_params

    @property
    def dense_layer_params(self) -> int:
        """Parameters of one of the first `dense_layers`."""
        return self.attention_params + self.mlp_parameters(self.dense_width) + 2 * self.norm_params

    @property
    def embedding_params(self) -> int:
        """Token embedding, and learned positions where the model has them."""
        return self.vocab * self.hidden + (self.seq_len * self.hidden if self.positions == "learned" else 0)

    @property
    def head_params(self) -> int:
        """Output projection: 0 where it is the token embedding itself."""
        return 0 if self.tied_embeddings else self.vocab * self.hidden

    @property
    def params(self) -> int:
        """All parameters."""
        dense = self.dense_layers
        layers = (self.layers - dense) * self.layer_params + dense * self.dense_layer_params
        return layers + self.embedding_params + self.head_params + self.norm_params

    def layers_forward_flops(self, *, tokens: int) -> float:
        """FLOPs of all layers' forward pass."""
        every = self.layers * self.layer_forward_flops(tokens=tokens)
        if not self.dense_layers:
            return every
        less = self._mlp_flops(tokens, self.visited_ffn_hidden) - self._mlp_flops(tokens, self.dense_width)
        return every - self.dense_layers * float(less + 2 * tokens * self.router_params)

    def _mlp_flops(self, tokens: int, width: int) -> int:
        return 2 * tokens * (3 if self.gated_mlp else 2) * self.hidden * width

    def layer_forward_flops(self, *, tokens: int, seq_len: int | None = None) -> float:
        """FLOPs of one layer's forward pass over `tokens` tokens, sequences of `seq_len`, full (not causal) attention.

        The convention of Narayanan et al. 2021, eq. 3: a multiply-add is 2 FLOPs and causal attention counts in full.
        """
        seq = self.seq_len if seq_len is None else seq_len
        projections = 2 * tokens * self.hidden * (2 * self.attention_hidden + 2 * self.kv_hidden)
        attention = 4 * tokens * seq * self.attention_hidden
        mlp = self._mlp_flops(tokens, self.visited_ffn_hidden)
        return float(projections + attention + mlp + 2 * tokens * self.router_params)

    def logits_forward_flops(self, *, tokens: int) -> float:
        """FLOPs of the output projection."""
        return 2.0 * tokens * self.hidden * self.vocab

    def step_flops(self, *, sequences: int) -> float:
        """Model FLOPs of one training step without recomputation: forward plus twice that for backward."""
        tokens = sequences * self.seq_len
        return 3.0 * (self.layers_forward_flops(tokens=tokens) + self.logits_forward_flops(tokens=tokens))
