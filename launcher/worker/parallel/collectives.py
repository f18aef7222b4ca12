"""Collectives of tensor parallelism with their gradients, on plain tensors; the sequence is dimension 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.worker.parallel.process_groups import ProcessGroup

Move = Callable[[Tensor, ProcessGroup], Tensor]
BUCKET_BYTES = 25 * 2**20  # DDP's default bucket


class _Moved(torch.autograd.Function):
    """`there(x)`, with `back` for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: ProcessGroup, there: Move, back: Move) -> Tensor:
        ctx.peers, ctx.back = peers, back
        return there(x, peers)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(grads[0], ctx.peers), None, None, None


def _moved(x: Tensor, peers: ProcessGroup, there: Move, back: Move) -> Tensor:
    out: Tensor = _Moved.apply(x, peers, there, back)  # type: ignore[no-untyped-call]
    return out


def copy_to(x: Tensor, peers: ProcessGroup) -> Tensor:
    """Identity; the gradient is summed over the group. For the input of linears: it is summed in place."""
    return _moved(x, peers, _same, _sum_in_place)


def reduce_from(x: Tensor, peers: ProcessGroup) -> Tensor:
    """Sum over the group in place: nothing else needs the input. The gradient passes through."""
    return _moved(x, peers, _sum, _same)


def gather_sequence(x: Tensor, peers: ProcessGroup) -> Tensor:
    """(batch, seq / ranks, …) → (batch, seq, …); gradients are reduce-scattered."""
    return _moved(x, peers, gather, reduce_scatter)


def scatter_sequence(x: Tensor, peers: ProcessGroup) -> Tensor:
    """The reduce-scattered sum over the group: (batch, seq, …) → (batch, seq / ranks, …); gradients are gathered."""
    return _moved(x, peers, reduce_scatter, gather)


def split_sequence(x: Tensor, peers: ProcessGroup) -> Tensor:
    """Return this rank's part of a replicated tensor; gradients are gathered."""
    return _moved(x, peers, _split, gather)


def join_sequence(x: Tensor, peers: ProcessGroup) -> Tensor:
    """Return the gathered whole, which all ranks use in the same way; the gradient is split."""
    return _moved(x, peers, gather, _split)


def _same(x: Tensor, peers: ProcessGroup) -> Tensor:
    return x


def _sum_in_place(x: Tensor, peers: ProcessGroup) -> Tensor:
    total = x.contiguous()
    peers.all_reduce(total)
    return total


def _sum(x: Tensor, peers: ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    peers.all_reduce(total)
    return total


def gather(x: Tensor, peers: ProcessGroup) -> Tensor:
    """Every rank's (batch, part, …), joined along dimension 1. No gradient."""
    return peers.all_gather(x).movedim(0, 1).flatten(1, 2)


def reduce_scatter(x: Tensor, peers: ProcessGroup) -> Tensor:
    """This rank's part, along dimension 1, of the sum over ranks. No gradient."""
    return peers.reduce_scatter(x.reshape(len(x), peers.size, -1, *x.shape[2:]).movedim(1, 0).contiguous())


def _split(x: Tensor, peers: ProcessGroup) -> Tensor:
    # A copy, not a view: the whole can go.
    return x.chunk(peers.size, dim=1)[peers.rank].clone(memory_format=torch.contiguous_format)


def sum_all(tensors: Iterable[Tensor], group: dist.ProcessGroup, *, divide_by: int = 1) -> None:
    """Replace every tensor by its sum over the group ÷ `divide_by`, many in one message."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket]) if len(bucket) > 1 else bucket[0].flatten()
        dist.all_reduce(flat, group=group)
        if divide_by > 1:
            flat.div_(divide_by)
        for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of about BUCKET_BYTES each."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
