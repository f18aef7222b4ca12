"""Tensor-parallel layers of plain tensors, for engines that do not know DTensor: columns, rows, vocabulary.

The cuts are those of `launcher.worker.parallel`, after Shoeybi et al. 2019.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from launcher.model import Model
from launcher.worker.init import InitialWeights
from launcher.worker.loss import cross_entropy_sum, vocab_range
from launcher.worker.mesh import Axes
from launcher.worker.transformer import Block

COLUMNS = ("q", "k", "v", "gate", "up")
ROWS = ("o", "down")
VOCAB = ("tokens", "head")


def cut_dim(name: str) -> int | None:
    """The dimension along which tensor parallelism cuts the parameter `name`; None where every rank has it whole."""
    module, kind = name.split(".")[-2:]
    if module in COLUMNS or module in VOCAB:
        return 0
    return 1 if module in ROWS and kind == "weight" else None


class _Copy(torch.autograd.Function):
    """Identity; the gradient is summed over the group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Reduce(torch.autograd.Function):
    """Sum over the group; the gradient is passed on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def copy_to(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Enter a tensor-parallel region."""
    out: Tensor = _Copy.apply(x, group)  # type: ignore[no-untyped-call]
    return out


class RowLinear(nn.Linear):
    """A linear whose input is cut over the group; the bias is added once, after the sum."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, group: dist.ProcessGroup) -> None:
        super().__init__(in_features // group.size(), out_features, bias=bias)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Reduce.apply(F.linear(x, self.weight), self.group)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias


class VocabEmbedding(nn.Embedding):
    """A token embedding whose rows are cut over the group."""

    def __init__(self, vocab: int, hidden: int, *, group: dist.ProcessGroup) -> None:
        self.start, self.end = vocab_range(vocab, rank=group.rank(), size=group.size())
        self.group = group
        super().__init__(self.end - self.start, hidden)

    def forward(self, ids: Tensor) -> Tensor:
        elsewhere = (ids < self.start) | (ids >= self.end)
        rows = F.embedding((ids - self.start).masked_fill(elsewhere, 0), self.weight)
        part = rows.masked_fill(elsewhere[..., None], 0.0)
        out: Tensor = _Reduce.apply(part, self.group)  # type: ignore[no-untyped-call]
        return out


class VocabHead(nn.Linear):
    """An output projection whose vocabulary is cut over the group; gives this rank's logits."""

    def __init__(self, hidden: int, vocab: int, *, group: dist.ProcessGroup) -> None:
        start, end = vocab_range(vocab, rank=group.rank(), size=group.size())
        super().__init__(hidden, end - start, bias=False)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(copy_to(x, self.group), self.weight)


def cut_block(block: Block, group: dist.ProcessGroup) -> Block:
    """Replace the linears of a block by this rank's parts of them."""
    for parent in (block.attention, block.mlp):
        for name, linear in list(parent.named_children()):
            if name in COLUMNS and isinstance(linear, nn.Linear):
                part = nn.Linear(linear.in_features, linear.out_features // group.size(), bias=linear.bias is not None)
                setattr(parent, name, part)
            elif name in ROWS and isinstance(linear, nn.Linear):
                bias = linear.bias is not None
                setattr(parent, name, RowLinear(linear.in_features, linear.out_features, bias=bias, group=group))
        # Once for q, k and v (gate and up): one sum of their input gradients.
        parent.register_forward_pre_hook(lambda _, inputs: (copy_to(inputs[0], group), *inputs[1:]))
    return block


def fill(module: nn.Module, *, prefix: str, model: Model, weights: InitialWeights, group: dist.ProcessGroup) -> None:
    """Initial values of a module's parameters, this rank's part of each, and DeepSpeed's marks on the parts.

    `prefix` + the local name is the parameter's global name.
    """
    with torch.no_grad():
        for local_name, param in module.named_parameters():
            name = prefix + local_name
            dim = cut_dim(name)
            if dim is None or group.size() == 1:
                param.copy_(weights(name, param.shape))
                continue
            shape = list(param.shape)
            shape[dim] = model.vocab if name.split(".")[-2] in VOCAB else shape[dim] * group.size()
            start, _ = vocab_range(shape[dim], rank=group.rank(), size=group.size())
            whole = weights(name, shape)
            param.copy_(whole.narrow(dim, start, param.shape[dim]))
            param.model_parallel = True  # type: ignore[attr-defined]
            param.tensor_model_parallel = True  # type: ignore[attr-defined]


def mean_loss(logits: Tensor, targets: Tensor, axes: Axes, *, vocab: int) -> Tensor:
    """Mean cross-entropy of one micro-batch; logits are this rank's part of the vocabulary."""
    group = axes.group("tp") if axes.degree("tp") > 1 else None
    start, _ = vocab_range(vocab, rank=axes.coordinate["tp"], size=axes.degree("tp"))
    return cross_entropy_sum(logits, targets, start=start, group=group) / targets.numel()
