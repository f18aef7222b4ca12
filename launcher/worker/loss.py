"""Cross-entropy over logits whose vocabulary is sharded over tensor-parallel ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def vocab_range(vocab: int, *, rank: int, size: int) -> tuple[int, int]:
    """[start, end) of the vocabulary on tensor-parallel rank `rank`: equal chunks, the last ones short or empty."""
    chunk = -(-vocab // size)
    return min(rank * chunk, vocab), min((rank + 1) * chunk, vocab)


def cross_entropy_sum(
    logits: Tensor, targets: Tensor, *, start: int = 0, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Sum over tokens of the cross-entropy; logits (…, vocab on this rank), targets (…) in the whole vocabulary.

    `group` is the tensor-parallel group over which the vocabulary is sharded, None where it is not; `start` is the
    first token id of this rank's shard.
    """
    flat, flat_targets = logits.flatten(0, -2).float(), targets.flatten()
    if group is None or group.size() == 1:
        return F.cross_entropy(flat, flat_targets, reduction="sum")
    loss: Tensor = _VocabParallelCrossEntropy.apply(flat, flat_targets, start, group)  # type: ignore[no-untyped-call]
    return loss


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """log Σ exp(z) − z[target] with small all-reduces instead of gathering the logits (Shoeybi et al. 2019, 3)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, start: int, group: dist.ProcessGroup) -> Tensor:
        peak = logits.amax(dim=-1) if logits.shape[-1] else logits.new_full(logits.shape[:1], float("-inf"))
        dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
        exps = (logits - peak[:, None]).exp()
        local = targets - start
        here = (local >= 0) & (local < logits.shape[-1])
        picked = logits.new_zeros(len(targets))
        picked[here] = logits[here, local[here]] - peak[here]
        sums = torch.stack([exps.sum(dim=-1), picked])
        dist.all_reduce(sums, group=group)
        ctx.save_for_backward(exps / sums[0][:, None], local, here)
        return (sums[0].log() - sums[1]).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        probabilities, local, here = ctx.saved_tensors
        grad = probabilities.clone()
        grad[here, local[here]] -= 1.0
        return grad * grads[0], None, None, None
