"""A decoder-only transformer, or one pipeline stage of it: GPT-2-shaped or Llama-shaped by its `Model`.

Parameter names are global: layer 3 is `layers.3` on whatever stage it lives, so that a checkpoint fits every layout.
Nothing here knows about process groups: linears may be replaced or sharded by whoever owns the axes, since the
attention reads its number of heads off the width of what it gets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.utils.checkpoint import checkpoint

from launcher.model import Model
from launcher.worker.model.norm import RMSNorm

Core = Callable[[Tensor, Tensor, Tensor], Tensor]
Place = Callable[[torch.device], Tensor]  # which positions of the sequence a stage works on


@dataclass(frozen=True)
class StageShape:
    """Which part of a model a stage holds: layers [first, last), the embedding, the head."""

    first: int
    last: int
    embedding: bool
    head: bool

    @classmethod
    def whole(cls, model: Model) -> StageShape:
        return cls(0, model.layers, True, True)


def stage_shapes(split: tuple[int, ...]) -> list[StageShape]:
    """Return the stages of a pipeline; stage `i` has `split[i]` layers."""
    ends = [sum(split[: i + 1]) for i in range(len(split))]
    return [
        StageShape(end - count, end, i == 0, i == len(split) - 1)
        for i, (end, count) in enumerate(zip(ends, split, strict=True))
    ]


class Attention(nn.Module):
    """Causal self-attention; (batch, seq, hidden) → (batch, seq, hidden)."""

    def __init__(self, model: Model, *, kernel: str, recompute: bool) -> None:
        super().__init__()
        self.head_dim = model.head_dim
        self.theta = model.rope_theta if model.positions == "rotary" else None
        self.kernel = kernel
        self.recompute = recompute
        self.core: Core = self._core
        self.place: Place | None = None  # None: from the first on
        self.q = nn.Linear(model.hidden, model.attention_hidden, bias=model.bias)
        self.k = nn.Linear(model.hidden, model.kv_hidden, bias=model.bias)
        self.v = nn.Linear(model.hidden, model.kv_hidden, bias=model.bias)
        self.o = nn.Linear(model.attention_hidden, model.hidden, bias=model.bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._heads(projection(x)) for projection in (self.q, self.k, self.v))
        if self.theta is not None:
            turns = rotations(positions(self.place, q.shape[2], q.device), dim=self.head_dim, theta=self.theta)
            q, k = apply_rotary(q, turns), apply_rotary(k, turns)
        mixed: Tensor
        if self.recompute and torch.is_grad_enabled():
            mixed = checkpoint(self.core, q, k, v, use_reentrant=False, preserve_rng_state=False)
        else:
            mixed = self.core(q, k, v)
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _core(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax(q kᵀ / √d) v over (batch, heads, seq, head_dim); grouped key-value heads are repeated.

        Where there are more keys than queries, the queries are the last ones of the sequence so far.
        """
        grouped, queries, keys = q.shape[1] != k.shape[1], q.shape[2], k.shape[2]
        if self.kernel != "math":
            if queries == keys:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            mask = past_mask(queries, keys, q.device)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        if grouped:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        scores = (q @ k.transpose(-2, -1)) * self.head_dim**-0.5
        future = torch.ones(queries, keys, dtype=torch.bool, device=q.device).triu(1 + keys - queries)
        return torch.softmax(scores.float().masked_fill(future, float("-inf")), dim=-1).to(q.dtype) @ v


class Mlp(nn.Module):
    """down(gelu(up(x))), or SwiGLU: down(silu(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.gate = nn.Linear(model.hidden, model.ffn_hidden, bias=model.bias) if model.gated_mlp else None
        self.up = nn.Linear(model.hidden, model.ffn_hidden, bias=model.bias)
        self.down = nn.Linear(model.ffn_hidden, model.hidden, bias=model.bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.silu(self.gate(x)) * self.up(x) if self.gate is not None else F.gelu(self.up(x), approximate="tanh")
        out: Tensor = self.down(inner)
        return out


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, model: Model, *, kernel: str, recompute: str) -> None:
        super().__init__()
        self.norm1 = make_norm(model)
        self.attention = Attention(model, kernel=kernel, recompute=recompute == "selective")
        self.norm2 = make_norm(model)
        self.mlp = Mlp(model)
        self.recompute = recompute == "full"

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            # Non-reentrant: the reentrant form loses gradients where the input needs none (the first layer of a stage).
            out: Tensor = checkpoint(self._forward, x, use_reentrant=False, preserve_rng_state=False)
            return out
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x  # noqa: RET504  typed by its parameter


class Transformer(nn.Module):
    """A stage: (batch, seq) token ids, or (batch, seq, hidden) from the stage before, → hidden states or logits."""

    def __init__(self, model: Model, shape: StageShape, *, kernel: str = "flash", recompute: str = "none") -> None:
        super().__init__()
        self.tokens = nn.Embedding(model.vocab, model.hidden) if shape.embedding else None
        learned = shape.embedding and model.positions == "learned"
        self.positions = nn.Embedding(model.seq_len, model.hidden) if learned else None
        self.place: Place | None = None
        self.embedded = nn.Identity()  # where sequence parallelism begins
        self.entry, self.exit = nn.Identity(), nn.Identity()  # what comes from and goes to other stages passes by here
        blocks = {str(i): Block(model, kernel=kernel, recompute=recompute) for i in range(shape.first, shape.last)}
        self.layers = nn.ModuleDict(blocks)
        self.norm = make_norm(model) if shape.head else None
        self.head = nn.Linear(model.hidden, model.vocab, bias=False) if shape.head else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) if self.tokens is not None else self.entry(x)
        for block in self.layers.values():
            x = block(x)
        x = self.head(self.norm(x)) if self.head is not None and self.norm is not None else self.exit(x)
        return x  # noqa: RET504  typed by its parameter

    def embed(self, ids: Tensor) -> Tensor:
        x: Tensor = self.tokens(ids) if self.tokens is not None else ids
        if self.positions is not None:
            x = x + self.positions(positions(self.place, ids.shape[1], ids.device))
        x = self.embedded(x)
        return x  # noqa: RET504  typed by its parameter

    def tie(self) -> None:
        """Let the head be the token embedding itself, where a stage has both."""
        if self.tokens is not None and self.head is not None:
            self.head.weight = self.tokens.weight


def past_mask(queries: int, keys: int, device: torch.device) -> Any:
    """True where a query may look: the queries are the last ones of the keys.

    On a GPU a name for that alone, by which the flash kernel needs no mask in memory.
    """
    if device.type == "cuda":
        return causal_lower_right(queries, keys)
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def make_norm(model: Model) -> nn.Module:
    kind = nn.LayerNorm if model.norm == "layernorm" else RMSNorm
    return kind(model.hidden, eps=model.norm_eps)


def positions(place: Place | None, count: int, device: torch.device) -> Tensor:
    """Return the positions of `count` entries in the sequence."""
    return torch.arange(count, device=device) if place is None else place(device)


def rotations(at: Tensor, *, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (seq, dim) in fp32, by which the positions `at` turn the halves of each head."""
    inverse = theta ** (-torch.arange(0, dim, 2, device=at.device, dtype=torch.float32) / dim)
    angles = torch.outer(at.to(torch.float32), inverse)
    cos, sin = (torch.cat([t, t], dim=-1) for t in (angles.cos(), angles.sin()))
    return cos, sin


def apply_rotary(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the halves of each head (the convention of Llama in Hugging Face); x is (…, seq, head_dim)."""
    cos, sin = turns
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
