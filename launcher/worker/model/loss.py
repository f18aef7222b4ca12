"""Cross-entropy over logits with a vocabulary sharded over tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.worker.parallel.process_groups import ProcessGroup

CHUNK_LOGITS = 2**24  # in fp32 at once: 64 MiB


def vocab_range(vocab: int, *, rank: int, size: int) -> tuple[int, int]:
    """[start, end) of the vocabulary on tensor-parallel rank `rank`: equal chunks, the last ones short or empty."""
    chunk = -(-vocab // size)
    return min(rank * chunk, vocab), min((rank + 1) * chunk, vocab)


def cross_entropy_sum(logits: Tensor, targets: Tensor, *, start: int = 0, peers: ProcessGroup | None = None) -> Tensor:
    """Sum over tokens of the cross-entropy; logits (…, vocab on this rank), targets (…) in the whole vocabulary.

    `peers` are the tensor-parallel ranks over which the vocabulary is sharded, None where it is not; `start` is the
    first token id of this rank's shard. Sums are in fp32 whatever the dtype of the logits.
    """
    shared = peers if peers is not None and peers.size > 1 else None
    loss: Tensor = _CrossEntropy.apply(logits.flatten(0, -2), targets.flatten(), start, shared)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    """log Σ exp(z) − z[target] with small all-reduces instead of gathering the logits (Shoeybi et al. 2019, 3).

    The gradient is computed with the loss, chunk by chunk, so that what lives at once are the logits and their
    gradient, both in the logits' dtype, and one chunk in fp32.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, start: int, peers: ProcessGroup | None) -> Tensor:
        width = logits.shape[-1]
        if not width:  # a rank beyond the vocabulary
            logits = logits.new_full((len(targets), 1), float("-inf"))
        peak = logits.amax(dim=-1).float()
        if peers is not None:
            peers.all_reduce(peak, op=dist.ReduceOp.MAX)
        index = targets - start
        here = (index >= 0) & (index < logits.shape[-1])
        index = index.clamp(0, logits.shape[-1] - 1)[:, None]
        picked = torch.where(here, logits.gather(-1, index)[:, 0].float() - peak, 0.0)
        exps = torch.cat([_exps(logits[rows], peak[rows]).sum(dim=-1) for rows in _chunks(logits)])
        sums = torch.stack([exps, picked])
        if peers is not None:
            peers.all_reduce(sums)
        if ctx.needs_input_grad[0]:
            gradient = torch.empty_like(logits)
            for rows in _chunks(logits):
                part = _exps(logits[rows], peak[rows]).div_(sums[0][rows, None])
                gradient[rows] = part.scatter_add_(-1, index[rows], -here[rows, None].float())
            ctx.save_for_backward(gradient[:, :width])
        return (sums[0].log() - sums[1]).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None


def _exps(logits: Tensor, peak: Tensor) -> Tensor:
    return logits.to(torch.float32, copy=True).sub_(peak[:, None]).exp_()


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Runs of rows, of about CHUNK_LOGITS elements each."""
    rows = max(1, CHUNK_LOGITS // logits.shape[-1])
    return (slice(first, first + rows) for first in range(0, len(logits), rows))
