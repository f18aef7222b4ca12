"""Positions of a rank's shards in whole parameters: sharded by tensor parallelism, then by FSDP2."""

from __future__ import annotations

from functools import cached_property

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from launcher.layout import Layout
from launcher.model import Model
from launcher.worker.engines.optim import ShardSpec
from launcher.worker.model.tensor_layers import sees_a_part, shard_dim, whole_shape
from launcher.worker.parallel.mesh import Axes


class ShardSpecs:
    """The shard spec of every parameter of this rank."""

    def __init__(self, axes: Axes, layout: Layout, model: Model) -> None:
        self._axes, self._layout, self._model = axes, layout, model

    def __call__(self, name: str, param: nn.Parameter) -> ShardSpec:
        tp = self._layout.tp
        dim = shard_dim(name) if tp > 1 else None
        shape = whole_shape(name, param.shape, model=self._model, size=tp)
        summed = self._layout.sequence_parallel and sees_a_part(name)
        mesh, placements = self._placed(param, dim)
        names = mesh.mesh_dim_names or () if mesh is not None else ()
        cut = tuple(name for name, place in zip(names, placements, strict=True) if not isinstance(place, Replicate))
        return ShardSpec(shape, cut, mesh, placements, summed)

    def _placed(self, param: nn.Parameter, dim: int | None) -> tuple[DeviceMesh | None, tuple[Placement, ...]]:
        if not isinstance(param, DTensor):
            return (None, ()) if dim is None else (self._axes.sub("tp"), (Shard(dim),))
        if dim is None:
            return param.device_mesh, tuple(param.placements)
        # Where tensor parallelism cut dimension 0 first, FSDP's rows are strided over the whole parameter.
        strided = [
            _StridedShard(0, split_factor=self._layout.tp) if place.is_shard() and dim == 0 else place
            for place in param.placements
        ]
        return self._parts, (*strided, Shard(dim))

    @cached_property
    def _parts(self) -> DeviceMesh:
        return self._axes.parts()
