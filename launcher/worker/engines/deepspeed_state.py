"""The states of a DeepSpeed engine as whole fp32 tensors by global name, as in our checkpoints.

DeepSpeed's own files are pickles, executed on load, and fit only one number of ranks. So its engines are saved like the
torch engine: the same names and format, for any layout, ZeRO stage and either engine. Parameters are gathered one by
one; every data-parallel rank then keeps its share of them, whole and on the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from launcher.worker.engines.engine import EngineContext
from launcher.worker.engines.optim import first_state
from launcher.worker.parallel.shard_spec import ShardSpecs

MAIN = "main"  # the fp32 parameter, in addition to the optimizer states


class DeepSpeedState:
    """Reads and writes the fp32 parameters and optimizer states of one DeepSpeed engine; all methods are collective."""

    def __init__(self, engine: Any, context: EngineContext) -> None:
        self._engine, self._context = engine, context
        plan, axes = context.plan, context.axes
        self._shard_specs = ShardSpecs(axes, plan.layout, plan.job.model)
        self._group, self._rank, self._size = axes.group("dp"), axes.coordinate["dp"], axes.degree("dp")
        self._params: list[tuple[str, nn.Parameter]] = [
            (param.global_name, param) for param in engine.module.parameters()
        ]
        kind, momentum = plan.job.training.optimizer, context.options.momentum
        states = first_state(kind, torch.zeros(1), momentum=momentum)
        self._counts_steps = "step" in states
        self._keys = [MAIN, *(key for key in states if key != "step")]
        self._loading: dict[str, dict[str, Tensor]] = {}

    def gathered(self) -> dict[str, Any]:
        """Return what to save: this rank's share of the parameters."""
        self._prepare()
        kept: dict[str, dict[str, Tensor]] = {}
        for owner, name, param in self._owned():
            for key in self._keys:
                whole = self._whole(param, key)
                if owner == self._rank:
                    kept.setdefault(name, {})[key] = whole.to("cpu", torch.float32, copy=True)
        return self._nested(kept, step=self._step())

    def empty(self) -> dict[str, Any]:
        """Return the same tensors, to load into."""
        self._loading = {
            name: {key: torch.empty(whole_shape(param)) for key in self._keys}
            for owner, name, param in self._owned()
            if owner == self._rank
        }
        self._loaded_step = torch.tensor(0.0)
        return self._nested(self._loading, step=self._loaded_step)

    def take_over(self) -> None:
        """Copy what was loaded into `empty` to the engine."""
        self._prepare()
        device = self._context.device
        for owner, name, param in self._owned():
            for key in self._keys:
                mine = self._loading[name][key] if owner == self._rank else torch.empty(whole_shape(param))
                whole = mine.to(device)
                dist.broadcast(whole, group=self._group, group_src=owner)
                self._set(param, key, whole)
            self._loading.pop(name, None)
        step = self._loaded_step.to(device)
        dist.all_reduce(step, op=dist.ReduceOp.MAX)  # a rank without a share of the parameters has loaded none
        for state in self._states():
            if "step" in state:
                state["step"].fill_(float(step))

    # -- naming ---------------------------------------------------------------------------------------------------

    def _owned(self) -> Iterator[tuple[int, str, nn.Parameter]]:
        """(data-parallel rank that keeps it, global name, parameter)."""
        return ((number % self._size, name, param) for number, (name, param) in enumerate(self._params))

    def _nested(self, kept: Mapping[str, Mapping[str, Tensor]], *, step: Tensor | None) -> dict[str, Any]:
        model, optim = {}, {}
        for name, tensors in kept.items():
            spec = self._shard_specs(name, nn.Parameter(tensors[MAIN], requires_grad=False))
            model[name] = spec.global_tensor(tensors[MAIN])
            optim[name] = {key: spec.global_tensor(tensors[key]) for key in self._keys if key != MAIN}
            if step is not None and self._counts_steps:
                optim[name]["step"] = step
        return {"model": model, "optim": optim}

    # -- inside DeepSpeed -----------------------------------------------------------------------------------------

    @property
    def _base(self) -> torch.optim.Optimizer:
        """torch's optimizer inside DeepSpeed's."""
        outer = self._engine.optimizer
        inner: torch.optim.Optimizer = getattr(outer, "optimizer", outer)
        return inner

    def _stepped(self) -> Iterator[Tensor]:
        """The tensors that torch's optimizer steps; stage 3 shows it one after the other."""
        parts = getattr(self._engine.optimizer, "fp32_partitioned_groups_flat", None)
        yield from parts if parts is not None else (p for g in self._base.param_groups for p in g["params"])

    def _states(self) -> Iterator[dict[str, Tensor]]:
        return (self._base.state[param] for param in self._stepped())

    def _prepare(self) -> None:
        """Create the optimizer's initial states if it has none, and let DeepSpeed find them.

        It looks only once, after the first step of the first parameter group, when the second has none (0.19.8).
        """
        kind, momentum = self._context.plan.job.training.optimizer, self._context.options.momentum
        for param in self._stepped():
            if not self._base.state.get(param):
                self._base.state[param] = first_state(kind, param.detach(), momentum=momentum)
        outer = self._engine.optimizer
        if hasattr(outer, "_lazy_init_hp_params_optimizer_state"):
            outer._hp_optimizer_states_linked = False
            outer._lazy_init_hp_params_optimizer_state()

    def _step(self) -> Tensor | None:
        return next((state["step"].detach().cpu().clone() for state in self._states() if "step" in state), None)

    def _whole(self, param: nn.Parameter, key: str) -> Tensor:
        """Return the whole fp32 parameter, or its state `key`, on every rank of the data-parallel group."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if not is_sharded(param):
            return param.detach() if key == MAIN else self._base.state[param][key]
        found: Tensor
        found = safe_get_full_fp32_param(param) if key == MAIN else safe_get_full_optimizer_state(param, key)
        return found

    def _set(self, param: nn.Parameter, key: str, whole: Tensor) -> None:
        if not is_sharded(param):
            target = param.detach() if key == MAIN else self._base.state[param][key]
            target.copy_(whole)
            return
        if hasattr(param, "ds_id"):
            self._set_stage_3(param, key, whole)
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if key == MAIN:
            safe_set_full_fp32_param(param, whole)
            param.detach().copy_(whole)
        else:
            safe_set_full_optimizer_state(param, whole, key)

    def _set_stage_3(self, param: Any, key: str, whole: Tensor) -> None:
        """Set this rank's shard of the flattened parameter, which is padded to equal shards."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size = param.ds_tensor.numel()
        flat = F.pad(whole.flatten(), (0, size * self._size - whole.numel()))
        part = flat[self._rank * size : (self._rank + 1) * size]
        if key == MAIN:
            safe_set_local_fp32_param(param, part)
            param.ds_tensor.detach().copy_(part)
        else:
            safe_set_local_optimizer_state(param, part, key)


def is_sharded(param: nn.Parameter) -> bool:
    """Return whether ZeRO holds the fp32 values of a parameter separately."""
    return hasattr(param, "ds_id") or hasattr(param, "_hp_mapping")


def whole_shape(param: Any) -> torch.Size:
    """Return the whole shape of a parameter, which stage 3 may shard."""
    return torch.Size(getattr(param, "ds_shape", param.shape))
