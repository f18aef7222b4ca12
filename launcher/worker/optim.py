"""The optimizer over local shards: fp32 main parameters, the norm over all axes, clipping, the step.

Elementwise optimizers do the same on a shard as on the whole, so that they work on plain local tensors: no DTensor
dispatch, one fused call for all parameters, and one place where bf16 parameters meet their fp32 main copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement

from launcher.plan.options import TrainOptions


@dataclass
class Piece:
    """A rank's part of one parameter.

    `main` is the fp32 tensor that the optimizer steps: the parameter's own storage where that is fp32.
    `axes` names the mesh axes over which the whole parameter is cut; `counted` is False for a second copy of a
    parameter (a tied head on another stage), which the global norm must not see twice.
    """

    name: str
    param: nn.Parameter
    main: nn.Parameter
    axes: tuple[str, ...]
    counted: bool
    saved_name: str
    partial: Sequence[Placement] | None = None  # how `main.grad` is still to be summed up over axes

    @property
    def shares_storage(self) -> bool:
        own, working = self.main.untyped_storage(), local(self.param).untyped_storage()
        return own._cdata == working._cdata and self.main.dtype == self.param.dtype  # fake tensors have no data_ptr

    def accumulate(self, _: Tensor | None = None) -> None:
        """Move the gradient off the parameter and add it to the main one, in fp32. What is still a partial sum over an
        axis stays so until `complete`.
        """
        grad, self.param.grad = self.param.grad, None
        if grad is None:
            return
        if isinstance(grad, DTensor) and isinstance(self.param, DTensor) and grad.placements != self.param.placements:
            if any(placement.is_shard() for placement in (*grad.placements, *self.param.placements)):
                grad = grad.redistribute(placements=self.param.placements)
            else:
                self.partial = grad.placements
        part = local(grad)
        if self.main.grad is None:
            self.main.grad = part.to(torch.float32)
        else:
            self.main.grad.add_(part)

    def complete(self) -> None:
        """Sum `main.grad` over the axes over which it is partial."""
        if self.partial is None or self.main.grad is None or not isinstance(self.param, DTensor):
            return
        grad = DTensor.from_local(self.main.grad, self.param.device_mesh, self.partial, run_check=False)
        self.main.grad = local(grad.redistribute(placements=self.param.placements))
        self.partial = None


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, sharing storage."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def cut_axes(tensor: Tensor) -> tuple[str, ...]:
    """Names of the mesh axes over which a tensor is sharded."""
    if not isinstance(tensor, DTensor):
        return ()
    names = tensor.device_mesh.mesh_dim_names or ()
    # Not `isinstance(…, Shard)`: where FSDP2 cuts what tensor parallelism cut already, the placement is another class.
    return tuple(name for name, placement in zip(names, tensor.placements, strict=True) if not placement.is_replicate())


def make_pieces(named: Iterable[tuple[str, nn.Parameter]], *, copies: Mapping[str, str]) -> list[Piece]:
    """The pieces of a rank's parameters; `copies` maps the name of a second copy to the name of the first."""
    pieces = []
    for name, param in named:
        part = local(param)
        main = nn.Parameter(part if part.dtype == torch.float32 else part.float())
        pieces.append(Piece(name, param, main, cut_axes(param), name not in copies, copies.get(name, name)))
    return pieces


class Optimizer:
    """Steps the pieces of one rank; `groups` maps mesh axes (and `pp`) to their process groups."""

    def __init__(
        self, pieces: list[Piece], kind: str, options: TrainOptions, *, groups: Mapping[str, dist.ProcessGroup]
    ) -> None:
        self.pieces = pieces
        self._options = options
        self._groups = groups
        decayed = [p.main for p in pieces if p.param.dim() > 1]
        plain = [p.main for p in pieces if p.param.dim() <= 1]
        self.inner = make_inner(kind, [(decayed, options.weight_decay), (plain, 0.0)], options)
        for main in (p.main for p in pieces):
            self.inner.state[main] = first_state(kind, main, momentum=options.momentum)

    def accumulate_in_fp32(self) -> None:
        """From now on add every micro-batch's gradients to fp32 ones as backward produces them."""
        for piece in self.pieces:
            piece.param.register_post_accumulate_grad_hook(piece.accumulate)  # type: ignore[no-untyped-call]

    def collect(self) -> None:
        """Take the gradients off the parameters into the main ones, in fp32 and cut like them."""
        for piece in self.pieces:
            piece.accumulate()
            piece.complete()

    def norm(self) -> Tensor:
        """The 2-norm of the whole model's gradient: every element once, over all axes and stages."""
        squares = {
            axes: torch.zeros((), device=self.pieces[0].main.device) for axes in sorted({p.axes for p in self.pieces})
        }
        for axes, total in squares.items():
            grads = [p.main.grad for p in self.pieces if p.axes == axes and p.counted and p.main.grad is not None]
            if grads:
                total += torch.stack(torch._foreach_norm(grads)).square().sum()
            for axis in axes:
                dist.all_reduce(total, group=self._groups[axis])
        norm = torch.stack(list(squares.values())).sum()
        if "pp" in self._groups:
            dist.all_reduce(norm, group=self._groups["pp"])
        return norm.sqrt()

    def step(self, lr: float) -> float:
        """Clip, step at learning rate `lr`, and hand the result to the parameters; returns the norm before clipping."""
        norm = self.norm()
        clip = self._options.grad_clip
        grads = [p.main.grad for p in self.pieces if p.main.grad is not None]
        if clip > 0 and float(norm) > clip:
            torch._foreach_mul_(grads, clip / (float(norm) + 1e-6))
        for group in self.inner.param_groups:
            group["lr"] = lr
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        self.publish()
        return float(norm)

    def publish(self) -> None:
        """Round the main parameters into the working ones, where they are not the same tensor."""
        with torch.no_grad():
            for piece in self.pieces:
                if not piece.shares_storage:
                    local(piece.param).copy_(piece.main)

    def state(self, *, copies: bool) -> dict[str, Any]:
        """Parameters and optimizer state by global name, as views into this rank's; with `copies` also the second
        copies of tied parameters, under the name of the first.
        """
        wanted = {p.saved_name: p for p in reversed(self.pieces) if p.counted or copies}
        model = {name: like(p.param, p.main.detach()) for name, p in wanted.items()}
        optim = {
            name: {
                key: value if key == "step" else like(p.param, value) for key, value in self.inner.state[p.main].items()
            }
            for name, p in wanted.items()
        }
        return {"model": model, "optim": optim}

    def loaded(self) -> None:
        """After `state` was written into: bring second copies held here and working parameters in line."""
        first = {p.name: p for p in self.pieces}
        with torch.no_grad():
            for piece in self.pieces:
                source = first.get(piece.saved_name, piece)
                if source is not piece:
                    piece.main.copy_(source.main)
                    for key, value in self.inner.state[source.main].items():
                        self.inner.state[piece.main][key].copy_(value)
        self.publish()


def first_state(kind: str, main: Tensor, *, momentum: float) -> dict[str, Tensor]:
    """The optimizer state before the first step, as torch's own would be: there from the start, to be loaded into."""
    if kind == "sgd":
        return {"momentum_buffer": torch.zeros_like(main)} if momentum else {}
    return {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(main), "exp_avg_sq": torch.zeros_like(main)}


def like(param: Tensor, part: Tensor) -> Tensor:
    """`part`, this rank's shard, as a tensor cut the way `param` is."""
    if not isinstance(param, DTensor):
        return part
    return DTensor.from_local(
        part, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
    )


def make_inner(
    kind: str, groups: list[tuple[list[nn.Parameter], float]], options: TrainOptions
) -> torch.optim.Optimizer:
    """torch's own optimizer over (parameters, weight decay) groups."""
    dicts = [{"params": params, "weight_decay": decay} for params, decay in groups if params]
    if kind == "sgd":
        return torch.optim.SGD(dicts, lr=options.lr, momentum=options.momentum)
    cls = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    # Fused: the default on a GPU holds a temporary of every parameter's size during the step.
    return cls(dicts, lr=options.lr, betas=(options.beta1, options.beta2), eps=1e-8, fused=True)
