"""Context parallelism: every rank of the `cp` axis holds a part of the sequence, and attends to all keys before it.

The sequence is split into 2 × cp chunks; rank i has the i-th from either end, so that the causal mask gives all ranks
the same work (Llama 3, section 3.3.2; the zigzag of ring attention). Keys and values are gathered before the
attention and again for the backward pass, and their gradients are reduce-scattered: as many bytes as in a ring.
torch's own context parallelism supports only CUDA attention kernels (2.13).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from launcher.worker.model.transformer import Core, Transformer
from launcher.worker.parallel.process_groups import ProcessGroup
from launcher.worker.parallel.re_all_gather import made_again


def positions_of(rank: int, device: torch.device, *, size: int, seq_len: int) -> Tensor:
    """Which positions of a sequence a rank holds, in the order in which it holds them."""
    chunks = torch.arange(seq_len, device=device).chunk(2 * size)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]])


def apply_context_parallel(stage: Transformer, peers: ProcessGroup, *, seq_len: int, re_all_gather: bool) -> None:
    """Let `stage` work on this rank's part of the sequence."""
    stage.place = partial(positions_of, peers.rank, size=peers.size, seq_len=seq_len)
    for block in stage.layers.values():
        attention: Any = block.attention
        attention.place = stage.place
        attention.core = ContextAttention(attention.core, peers, re_all_gather=re_all_gather)


@dataclass(frozen=True)
class ContextAttention:
    """Attention of this rank's queries to the keys of all ranks; `core` masks keys after the last query's."""

    core: Core
    peers: ProcessGroup
    re_all_gather: bool

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        whole: Tensor = _GatherChunks.apply(torch.stack([k, v]), self.peers)  # type: ignore[no-untyped-call]
        if not self.re_all_gather:
            return self._attend(q, whole)
        kept = torch.stack([k, v]).detach()
        with made_again(whole, lambda: gather_chunks(kept, self.peers)):
            return self._attend(q, whole)

    def _attend(self, q: Tensor, whole: Tensor) -> Tensor:
        rank, size, length = self.peers.rank, self.peers.size, q.shape[2] // 2
        chunks = (rank, 2 * size - 1 - rank)
        ends = [(chunk + 1) * length for chunk in chunks]
        parts = zip(q.chunk(2, dim=2), ends, strict=True)
        return torch.cat([self.core(part, whole[0, :, :, :end], whole[1, :, :, :end]) for part, end in parts], dim=2)


class _GatherChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, peers: ProcessGroup) -> Tensor:
        ctx.peers = peers
        return gather_chunks(part, peers)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return sum_chunks(grads[0], ctx.peers), None


def gather_chunks(part: Tensor, peers: ProcessGroup) -> Tensor:
    """(2, batch, heads, seq / ranks, head_dim) of every rank → (2, batch, heads, seq, head_dim), in sequence order."""
    early, late = peers.all_gather(part).chunk(2, dim=-2)
    chunks = torch.cat([early, late.flip(0)])
    return chunks.movedim(0, -3).flatten(-3, -2)


def sum_chunks(whole: Tensor, peers: ProcessGroup) -> Tensor:
    """The reverse of `gather_chunks`: this rank's part of the sum over ranks."""
    chunks = torch.stack(whole.chunk(2 * peers.size, dim=-2))
    early, late = chunks.chunk(2)
    return peers.reduce_scatter(torch.cat([early, late.flip(0)], dim=-2))
