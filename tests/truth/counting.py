"""What a rank of a real run holds and sends: parameters, gradients, optimizer states, and bytes by axis."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from launcher.worker.engines.optim import local
from launcher.worker.engines.pipeline import InFlightStage
from launcher.worker.engines.torch_engine import TorchEngine
from launcher.worker.parallel.mesh import Axes

# Passes of a ring over the largest buffer of the call, by operator of torch's two collective libraries.
PASSES = {
    "allreduce_": 2, "all_reduce": 2, "_allgather_base_": 1, "all_gather_into_tensor": 1, "_reduce_scatter_base_": 1,
    "reduce_scatter_tensor": 1,
}  # fmt: skip
SILENT = {"recv_", "wait_tensor", "_wrap_tensor_autograd", "barrier"}


class SentBytes(TorchDispatchMode):  # type: ignore[misc]
    """Counts the bytes that this rank sends, by mesh axis ("other" for groups that are none)."""

    def __init__(self, axes: Axes) -> None:
        super().__init__()
        names = {tuple(axes.grid.group(axis, axes.rank)): axis for axis in axes.grid.axes if axes.degree(axis) > 1}
        if axes.degree("cp") > 1:
            names[tuple(dist.get_process_group_ranks(axes.replicas))] = "dp"
        self._names: Mapping[tuple[int, ...], str] = names
        self._pp = set(axes.grid.group("pp", axes.rank))
        self.by_axis: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count(func.overloadpacket.__name__, args, result)
        return result

    def _count(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name in SILENT:
            return
        tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)]
        size = max(tensor.numel() * tensor.element_size() for tensor in tensors)
        if name == "send":
            self.by_axis["pp"] += size
            return
        ranks = tuple(dist.get_process_group_ranks(_group(args)))
        axis = self._names.get(ranks) or ("pp" if set(ranks) <= self._pp else "other")
        self.by_axis[axis] += PASSES[name] * size * (len(ranks) - 1) / len(ranks)


def _group(args: tuple[Any, ...]) -> dist.ProcessGroup:
    for value in args:
        if isinstance(value, torch.ScriptObject):
            try:
                return dist.ProcessGroup.unbox(value)
            except (RuntimeError, ValueError, TypeError):
                continue  # the reduction operator, boxed likewise
    name = next(value for value in reversed(args) if isinstance(value, str))
    return dist.distributed_c10d._resolve_process_group(name)


class HeldBytes:
    """The most bytes of parameters, gradients and optimizer states that a rank holds at the end of any forward pass
    and of a pipeline's backward passes, and before and after the gradients are handed to the optimizer.
    """

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self.most: dict[str, int] = defaultdict(int)
        for stage in engine.stages.values():
            stage.register_forward_hook(lambda *_: self.look())
        collect = engine.optimizer.collect

        def collected() -> None:
            self.look()
            collect()
            self.look()

        engine.optimizer.collect = collected  # type: ignore[method-assign]

    def __enter__(self) -> HeldBytes:
        backward = InFlightStage.backward_one_chunk

        def looked(stage: InFlightStage, *args: Any, **options: Any) -> None:
            backward(stage, *args, **options)
            self.look()

        self._patch = patch.object(InFlightStage, "backward_one_chunk", looked)
        self._patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.stop()

    def look(self) -> None:
        for part, tensors in self._parts().items():
            storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
            self.most[part] = max(self.most[part], sum(storages.values()))

    def _parts(self) -> dict[str, list[Tensor]]:
        optimizer = self._engine.optimizer
        mains = [shard.main for shard in optimizer.shards]
        states = [t for main in mains for t in optimizer.inner.state[main].values() if t.dim()]
        copies = [shard.main for shard in optimizer.shards if self._engine.sharded or not shard.shares_storage]
        grads = [t.grad for t in (*mains, *(shard.param for shard in optimizer.shards)) if t.grad is not None]
        whole, unreduced = self._gathered()
        working = [] if self._engine.sharded else [local(shard.param) for shard in optimizer.shards]
        return {
            "parameters": working + whole,
            "gradients": [local(grad) for grad in grads] + unreduced,
            "optimizer": copies + states,
        }

    def _gathered(self) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters that FSDP2 holds gathered, and their gradients that it has not reduced yet."""
        params = [
            param
            for stage in self._engine.stages.values()
            for module in stage.modules()
            if isinstance(module, FSDPModule) and (group := module._get_fsdp_state()._fsdp_param_group) is not None
            for param in group.fsdp_params
        ]
        whole = [param._unsharded_param for param in params if hasattr(param, "_unsharded_param")]
        grads = [param.unsharded_accumulated_grad for param in params] + [param.grad for param in whole]
        return [local(param) for param in whole], [local(grad) for grad in grads if grad is not None]
