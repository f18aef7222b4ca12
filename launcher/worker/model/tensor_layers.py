"""Tensor-parallel layers of plain tensors: columns, rows, vocabulary (Shoeybi et al. 2019), and with sequence
parallelism the sequence split between them (Korthikanti et al. 2022).

Plain tensors, not DTensor: its dispatch costs more than the arithmetic of a small layer. A step of tp2 × pp2 × dp2 on
CPU ranks took 1.6 s of CPU time with it and takes 0.8 s without.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from launcher.model import Model
from launcher.worker.model.init import InitialWeights
from launcher.worker.model.loss import cross_entropy_sum, vocab_range
from launcher.worker.model.transformer import Block, Transformer
from launcher.worker.parallel.collectives import (
    copy_to,
    gather_sequence,
    join_sequence,
    reduce_from,
    scatter_sequence,
    split_sequence,
)
from launcher.worker.parallel.mesh import Axes
from launcher.worker.parallel.process_groups import ProcessGroup
from launcher.worker.parallel.re_all_gather import re_all_gathered

COLUMNS = ("q", "k", "v", "gate", "up")
ROWS = ("o", "down")
VOCAB = ("tokens", "head")


@dataclass(frozen=True)
class TensorAxis:
    """Communication of tensor-parallel ranks at the ends of a layer.

    With `sequence` each rank has a part of the sequence between layers; with `re_all_gather` a layer's projections
    save only that part, and gather it again for the backward pass.
    """

    peers: ProcessGroup
    sequence: bool = False
    re_all_gather: bool = False

    def enter(self, x: Tensor) -> Tensor:
        """Return the whole of what every rank has in part, or replicated; gradients are summed."""
        return gather_sequence(x, self.peers) if self.sequence else copy_to(x, self.peers)

    def leave(self, partial: Tensor) -> Tensor:
        """Return the sum over ranks; with sequence parallelism each rank keeps its part."""
        return scatter_sequence(partial, self.peers) if self.sequence else reduce_from(partial, self.peers)


def shard_dim(name: str) -> int | None:
    """Return the dimension along which tensor parallelism shards the parameter `name`; None if it is replicated."""
    module, kind = name.split(".")[-2:]
    if module in COLUMNS or module in VOCAB:
        return 0
    return 1 if module in ROWS and kind == "weight" else None


def sees_a_part(name: str) -> bool:
    """Return whether, with sequence parallelism, a rank's gradient is only that of its part of the sequence."""
    module, kind = name.split(".")[-2:]
    return module.startswith("norm") or (module in ROWS and kind == "bias")


class RowLinear(nn.Linear):
    """A linear with its input sharded over the group; the bias is added once, after the sum."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, axis: TensorAxis) -> None:
        super().__init__(in_features // axis.peers.size, out_features, bias=bias)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        out = self.axis.leave(F.linear(x, self.weight))
        return out if self.bias is None else out + self.bias


class VocabEmbedding(nn.Embedding):
    """A token embedding with rows sharded over the group: whole ids in, whole embeddings out."""

    def __init__(self, vocab: int, hidden: int, *, axis: TensorAxis) -> None:
        self.start, self.end = vocab_range(vocab, rank=axis.peers.rank, size=axis.peers.size)
        self.peers = axis.peers
        super().__init__(self.end - self.start, hidden)

    def forward(self, ids: Tensor) -> Tensor:
        if self.start == self.end:  # a rank beyond the vocabulary still takes part in the sum, and in backward
            nothing = self.weight.sum() + self.weight.new_zeros(*ids.shape, self.embedding_dim)
            return reduce_from(nothing, self.peers)
        here = (ids >= self.start) & (ids < self.end)
        rows = F.embedding((ids - self.start).clamp(0, self.end - self.start - 1), self.weight)
        return reduce_from(rows * here[..., None], self.peers)


class VocabHead(nn.Linear):
    """An output projection with its vocabulary sharded over the group; returns this rank's logits."""

    def __init__(self, hidden: int, vocab: int, *, axis: TensorAxis) -> None:
        start, end = vocab_range(vocab, rank=axis.peers.rank, size=axis.peers.size)
        super().__init__(hidden, end - start, bias=False)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.axis.enter(x), self.weight)


def shard_block(block: Block, axis: TensorAxis) -> Block:
    """Replace the linears of a block by this rank's shards."""
    size = axis.peers.size
    for parent in (block.attention, block.mlp):
        for name, linear in list(parent.named_children()):
            if name in COLUMNS and isinstance(linear, nn.Linear):
                part = nn.Linear(linear.in_features, linear.out_features // size, bias=linear.bias is not None)
                setattr(parent, name, part)
            elif name in ROWS and isinstance(linear, nn.Linear):
                bias = linear.bias is not None
                setattr(parent, name, RowLinear(linear.in_features, linear.out_features, bias=bias, axis=axis))
        # Once for q, k and v (gate and up): one sum of their input gradients.
        if axis.sequence and axis.re_all_gather:
            re_all_gathered(parent, axis.peers)
        else:
            parent.register_forward_pre_hook(lambda _, inputs: (axis.enter(inputs[0]), *inputs[1:]))
    return block


def shard_model(stage: Transformer, axis: TensorAxis, *, model: Model) -> None:
    """Replace everything in a stage that tensor parallelism shards by this rank's shard."""
    if stage.tokens is not None:
        stage.tokens = VocabEmbedding(model.vocab, model.hidden, axis=axis)
    if stage.head is not None:
        stage.head = VocabHead(model.hidden, model.vocab, axis=axis)
    for block in stage.layers.values():
        if isinstance(block, Block):
            shard_block(block, axis)


def fill(module: nn.Module, *, prefix: str, model: Model, weights: InitialWeights, group: dist.ProcessGroup) -> None:
    """Initial values of a module's parameters, this rank's part of each, their global names, and DeepSpeed's marks.

    `prefix` + the local name is the parameter's global name.
    """
    with torch.no_grad():
        for local_name, param in module.named_parameters():
            name = prefix + local_name
            param.global_name = name  # type: ignore[attr-defined]
            dim = shard_dim(name)
            if dim is None or group.size() == 1:
                param.copy_(weights(name, param.shape))
                continue
            shape = whole_shape(name, param.shape, model=model, size=group.size())
            start, _ = vocab_range(shape[dim], rank=group.rank(), size=group.size())
            param.copy_(weights(name, shape).narrow(dim, start, param.shape[dim]))
            param.model_parallel = True  # type: ignore[attr-defined]
            param.tensor_model_parallel = True  # type: ignore[attr-defined]


def whole_shape(name: str, part: torch.Size, *, model: Model, size: int) -> torch.Size:
    """Return the shape of a whole parameter from that of its shard on one of `size` tensor-parallel ranks."""
    dim, shape = shard_dim(name), list(part)
    if dim is not None and size > 1:
        shape[dim] = model.vocab if name.split(".")[-2] in VOCAB else shape[dim] * size
    return torch.Size(shape)


def mean_loss(logits: Tensor, targets: Tensor, axes: Axes, *, vocab: int) -> Tensor:
    """Mean cross-entropy of one micro-batch; logits are this rank's part of the vocabulary."""
    peers = ProcessGroup(axes.group("tp")) if axes.degree("tp") > 1 else None
    start, _ = vocab_range(vocab, rank=axes.coordinate["tp"], size=axes.degree("tp"))
    return cross_entropy_sum(logits, targets, start=start, peers=peers) / targets.numel()


def shard_boundaries(stage: Transformer, axis: TensorAxis, *, shard_messages: bool) -> None:
    """Split a stage's hidden states over the sequence at its entry, and gather them at its exit.

    With `shard_messages` every rank sends its part of the sequence to the next stage, where the parts are gathered
    (Narayanan et al. 2021, section 4.1); with sequence parallelism they are parts already.
    """
    if axis.sequence:
        stage.embedded.register_forward_hook(lambda _, __, out: split_sequence(out, axis.peers))
    elif shard_messages:
        stage.entry.register_forward_hook(lambda _, __, out: join_sequence(out, axis.peers))
        stage.exit.register_forward_hook(lambda _, __, out: split_sequence(out, axis.peers))
