"""The optimizer over local shards: fp32 main parameters, the norm over all axes, clipping, the step.

Elementwise optimizers treat shards like whole tensors, so this works on plain local tensors: no DTensor dispatch, one
fused call for all parameters, and one place that connects bf16 parameters with their fp32 main copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

from launcher.planner.options import TrainOptions
from launcher.worker.parallel.collectives import sum_all


@dataclass(frozen=True)
class ShardSpec:
    """The position of this rank's shard in the whole parameter."""

    shape: torch.Size  # of the whole
    axes: tuple[str, ...] = ()  # mesh axes over which it is sharded
    mesh: DeviceMesh | None = None  # None: every rank has the whole
    placements: tuple[Placement, ...] = ()
    summed: bool = False  # a rank's gradient is that of its part of the sequence, to be summed over tp

    def global_tensor(self, part: Tensor) -> Tensor:
        """Return this rank's `part` as a DTensor with its position in the whole."""
        if self.mesh is None:
            return part
        stride = torch.empty(self.shape, device="meta").stride()
        # Not `DTensor.from_local`, which moves what it is given to the mesh's device.
        spec = DTensorSpec(self.mesh, self.placements, TensorMeta(self.shape, stride, part.dtype))
        return DTensor(part, spec, requires_grad=False)  # type: ignore[no-untyped-call]


@dataclass
class ParamShard:
    """A rank's shard of one parameter.

    `main` is the fp32 tensor that the optimizer steps: the parameter's own storage where that is fp32.
    `counted` is False for a second copy of a parameter (a tied head on another stage), which the global norm must not
    see twice.
    """

    name: str
    param: nn.Parameter
    main: nn.Parameter
    spec: ShardSpec
    counted: bool
    saved_name: str

    @property
    def shares_storage(self) -> bool:
        own, working = self.main.untyped_storage(), local(self.param).untyped_storage()
        return own._cdata == working._cdata and self.main.dtype == self.param.dtype  # fake tensors have no data_ptr

    def accumulate(self) -> None:
        """Move the gradient off the parameter and add it to the main one, in fp32."""
        _accumulate(self.param, into=self.main)


def _accumulate(param: Tensor, *, into: Tensor) -> None:
    grad, param.grad = param.grad, None
    if grad is None:
        return
    part = local(grad)
    if into.grad is None:
        into.grad = part.to(torch.float32)
    else:
        into.grad.add_(part)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, sharing storage."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def make_shards(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    copies: Mapping[str, str],
    spec: Callable[[str, nn.Parameter], ShardSpec],
) -> list[ParamShard]:
    """Make the shards of a rank's parameters; `copies` maps the name of a second copy to the name of the first."""
    shards = []
    for name, param in named:
        part = local(param)
        main = nn.Parameter(part if part.dtype == torch.float32 else part.float())
        shards.append(ParamShard(name, param, main, spec(name, param), name not in copies, copies.get(name, name)))
    return shards


class Optimizer:
    """Steps the shards of one rank; `groups` maps mesh axes (and `pp`) to their process groups."""

    def __init__(
        self, shards: list[ParamShard], kind: str, options: TrainOptions, *, groups: Mapping[str, dist.ProcessGroup]
    ) -> None:
        self.shards = shards
        self._options = options
        self._groups = groups
        decayed = [p.main for p in shards if p.param.dim() > 1]
        plain = [p.main for p in shards if p.param.dim() <= 1]
        self.inner = make_inner(kind, [(decayed, options.weight_decay), (plain, 0.0)], options)
        for main in (p.main for p in shards):
            self.inner.state[main] = first_state(kind, main, momentum=options.momentum)

    def accumulate_in_fp32(self) -> None:
        """From now on add every micro-batch's gradients to fp32 ones as backward produces them."""
        for shard in self.shards:
            # Not the shard, which holds the parameter: Python's garbage collector does not see that circle.
            hook = partial(_accumulate, into=shard.main)
            shard.param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def collect(self) -> None:
        """Take the gradients off the parameters into the main ones, in fp32, each the whole sequence's."""
        for shard in self.shards:
            shard.accumulate()
        summed = [p.main.grad for p in self.shards if p.spec.summed and p.main.grad is not None]
        if summed:
            sum_all(summed, self._groups["tp"])

    def norm(self) -> Tensor:
        """The 2-norm of the whole model's gradient: every element once, over all axes and stages."""
        cuts = sorted({p.spec.axes for p in self.shards})
        squares = torch.stack([self._square(axes) for axes in cuts])
        for axis in sorted({axis for axes in cuts for axis in axes}):
            cut = [number for number, axes in enumerate(cuts) if axis in axes]
            part = squares[cut]
            dist.all_reduce(part, group=self._groups[axis])
            squares[cut] = part
        norm = squares.sum()
        if "pp" in self._groups:
            dist.all_reduce(norm, group=self._groups["pp"])
        return norm.sqrt()

    def _square(self, axes: tuple[str, ...]) -> Tensor:
        """Return the sum of squares of this rank's gradients that are sharded over `axes`."""
        grads = [p.main.grad for p in self.shards if p.spec.axes == axes and p.counted and p.main.grad is not None]
        if not grads:
            return torch.zeros((), device=self.shards[0].main.device)
        return torch.stack(torch._foreach_norm(grads)).square().sum()

    def step(self, lr: float) -> float:
        """Clip, step at learning rate `lr`, and update the parameters; return the norm before clipping."""
        norm = self.norm()
        clip = self._options.grad_clip
        grads = [p.main.grad for p in self.shards if p.main.grad is not None]
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
            for shard in self.shards:
                if not shard.shares_storage:
                    local(shard.param).copy_(shard.main)

    def state(self, *, copies: bool) -> dict[str, Any]:
        """Parameters and optimizer state by global name, as views into this rank's; with `copies` also the second
        copies of tied parameters, under the name of the first.
        """
        wanted = {p.saved_name: p for p in reversed(self.shards) if p.counted or copies}
        model = {name: p.spec.global_tensor(p.main.detach()) for name, p in wanted.items()}
        optim = {
            name: {
                key: value if key == "step" else p.spec.global_tensor(value)
                for key, value in self.inner.state[p.main].items()
            }
            for name, p in wanted.items()
        }
        return {"model": model, "optim": optim}

    def loaded(self) -> None:
        """After `state` was written into: bring second copies held here and working parameters in line."""
        first = {p.name: p for p in self.shards}
        with torch.no_grad():
            for shard in self.shards:
                source = first.get(shard.saved_name, shard)
                if source is not shard:
                    shard.main.copy_(source.main)
                    for key, value in self.inner.state[source.main].items():
                        self.inner.state[shard.main][key].copy_(value)
        self.publish()


def first_state(kind: str, main: Tensor, *, momentum: float) -> dict[str, Tensor]:
    """The optimizer state before the first step, as torch's own would be: there from the start, to be loaded into."""
    if kind == "sgd":
        return {"momentum_buffer": torch.zeros_like(main)} if momentum else {}
    step = torch.zeros((), device=main.device)  # where the fused kernel of a GPU reads it
    return {"step": step, "exp_avg": torch.zeros_like(main), "exp_avg_sq": torch.zeros_like(main)}


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
