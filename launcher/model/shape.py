"""The shape of a decoder-only transformer, its parameter counts and its FLOPs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """Shape of a transformer. `norm`, `positions` and `bias` say which of the two common families it follows.

    With `num_experts` > 0 every MLP is a mixture of experts, of which each token visits `experts_per_token`.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn_hidden: int
    gated_mlp: bool
    vocab: int
    seq_len: int
    tied_embeddings: bool
    norm: str = "layernorm"  # layernorm | rmsnorm
    positions: str = "learned"  # learned | rotary
    bias: bool = True
    num_experts: int = 0
    experts_per_token: int = 0
    rope_theta: float = 10000.0  # base of the rotary angles (Su et al. 2021, section 3.4.3)
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_hidden(self) -> int:
        """Width of the key (and of the value) projection: smaller than `hidden` with grouped heads."""
        return self.head_dim * self.kv_heads

    @property
    def attention_params(self) -> int:
        """Parameters of one layer's attention: query, key, value and output projections."""
        weights = self.hidden * (2 * self.hidden + 2 * self.kv_hidden)
        return weights + (2 * self.hidden + 2 * self.kv_hidden if self.bias else 0)

    @property
    def mlp_params(self) -> int:
        """Parameters of one MLP (of one expert, with experts)."""
        matrices = 3 if self.gated_mlp else 2
        weights = matrices * self.hidden * self.ffn_hidden
        return weights + ((matrices - 1) * self.ffn_hidden + self.hidden if self.bias else 0)

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
        return (
            self.attention_params
            + self.mlp_params * max(1, self.num_experts)
            + self.router_params
            + 2 * self.norm_params
        )

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
        return self.layers * self.layer_params + self.embedding_params + self.head_params + self.norm_params

    def layer_forward_flops(self, *, tokens: int, seq_len: int | None = None) -> float:
        """FLOPs of one layer's forward pass over `tokens` tokens, sequences of `seq_len`, full (not causal) attention.

        The convention of Narayanan et al. 2021, eq. 3: a multiply-add is 2 FLOPs and causal attention counts in full.
        """
        seq = self.seq_len if seq_len is None else seq_len
        projections = 2 * tokens * self.hidden * (2 * self.hidden + 2 * self.kv_hidden)
        attention = 4 * tokens * seq * self.hidden
        experts = self.experts_per_token if self.num_experts else 1
        mlp = 2 * tokens * (3 if self.gated_mlp else 2) * self.hidden * self.ffn_hidden * experts
        return float(projections + attention + mlp + 2 * tokens * self.router_params)

    def logits_forward_flops(self, *, tokens: int) -> float:
        """FLOPs of the output projection."""
        return 2.0 * tokens * self.hidden * self.vocab

    def step_flops(self, *, sequences: int) -> float:
        """Model FLOPs of one training step without recomputation: forward plus twice that for backward."""
        tokens = sequences * self.seq_len
        return 3.0 * (self.layers * self.layer_forward_flops(tokens=tokens) + self.logits_forward_flops(tokens=tokens))
