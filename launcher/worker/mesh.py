"""Process groups and the device mesh, from the plan's rank grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from launcher.errors import InputError
from launcher.layout import RankGrid


@dataclass(frozen=True)
class Axes:
    """The axes of the plan inside a rank: the mesh, this rank's coordinate and each axis' group."""

    grid: RankGrid
    rank: int
    mesh: DeviceMesh

    @cached_property
    def coordinate(self) -> dict[str, int]:
        return self.grid.coordinate(self.rank)

    def degree(self, axis: str) -> int:
        return self.grid.degree(axis)

    def group(self, axis: str) -> dist.ProcessGroup:
        return self.mesh.get_group(axis)

    def sub(self, *axes: str) -> DeviceMesh:
        """The part of the mesh along `axes`, in the mesh's own order."""
        ordered = tuple(name for name in self.mesh.mesh_dim_names or () if name in axes)
        return self.mesh[ordered if len(ordered) > 1 else ordered[0]]


def build_mesh(grid: RankGrid, *, rank: int, device_type: str) -> Axes:
    """A mesh whose fastest varying dimension is the grid's first axis; every rank must call this."""
    if dist.get_world_size() != grid.size:
        raise InputError(f"the plan is for {grid.size} ranks, but {dist.get_world_size()} were started: plan again")
    ranks = torch.arange(grid.size).reshape(tuple(reversed(grid.degrees)))
    return Axes(grid, rank, DeviceMesh(device_type, ranks, mesh_dim_names=tuple(reversed(grid.axes))))


def shard_domains(mesh: DeviceMesh, *, axis: str, inner: int) -> DeviceMesh:
    """A two-dimensional mesh (replicate, shard) over `axis`: `inner` neighbours along it share one set of shards.

    With `inner` the number of data-parallel peers inside an NVSwitch domain this is hybrid sharding.
    """
    names = mesh.mesh_dim_names or ()
    position = names.index(axis)
    shape = list(mesh.mesh.shape)
    shape[position : position + 1] = [shape[position] // inner, inner]
    split = [*names[:position], f"{axis}_replicate", f"{axis}_shard", *names[position + 1 :]]
    return DeviceMesh(mesh.device_type, mesh.mesh.reshape(shape), mesh_dim_names=tuple(split))
