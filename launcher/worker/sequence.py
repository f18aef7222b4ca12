"""The input of a layer's projections under sequence parallelism: gathered for them, and gathered again for backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ParallelStyle


class GatherSequence(ParallelStyle):
    """Gathers a module's input, cut over the sequence, and keeps only this rank's cut for the backward pass, which
    gathers once more (Korthikanti et al. 2022, section 4.2.2).

    Not inside a checkpoint, where these hooks would keep what the checkpoint is to drop; nor under a schedule that
    splits the backward pass, which cannot unpack twice.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        entered: list[torch.autograd.graph.saved_tensors_hooks] = []

        def before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            cut = inputs[0]
            whole = cut.redistribute(placements=[Replicate()])
            kept = _Regathered(cut.detach(), _storage(whole))
            entered.append(torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack))
            entered[-1].__enter__()
            return (whole, *inputs[1:])

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            entered.pop().__exit__()

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after, always_call=True)
        return module


class _Regathered:
    """The cut of a tensor in place of the whole; the whole again from the first to the last of those who saved it."""

    def __init__(self, cut: DTensor, storage: int) -> None:
        self._cut = cut
        self._storage: int | None = storage
        self._whole: DTensor | None = None
        self._packed = self._unpacked = 0

    def pack(self, tensor: Tensor) -> Tensor | torch.Size:
        if not isinstance(tensor, DTensor) or _storage(tensor) != self._storage:
            return tensor
        self._packed += 1
        return tensor.shape

    def unpack(self, packed: Tensor | torch.Size) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        whole = self._gather() if self._whole is None else self._whole
        self._unpacked += 1
        self._whole = whole if self._unpacked % self._packed else None
        return whole.view(packed)

    def _gather(self) -> DTensor:
        # Not `redistribute`: its functional collectives crash when called from autograd's unpacking (torch 2.13, gloo).
        mesh, cut = self._cut.device_mesh, self._cut.to_local().contiguous()
        parts = cut.new_empty(mesh.size(), *cut.shape)
        dist.all_gather_single(parts.flatten(0, 1), cut, group=mesh.get_group())
        whole = parts.movedim(0, 1).flatten(1, 2)  # (batch, rank, seq / tp, hidden) → (batch, seq, hidden)
        return DTensor.from_local(whole, mesh, [Replicate()], run_check=False)


def _storage(tensor: DTensor) -> int:
    """What tells whether two tensors share their bytes."""
    local = tensor._local_tensor
    plain = local.elem if isinstance(local, AsyncCollectiveTensor) else local
    return int(plain.untyped_storage()._cdata)
