"""Process groups and the device mesh, from the plan's rank grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from launcher.errors import InputError
from launcher.layout import RankGrid

DATA_AND_CONTEXT = "dp_cp"


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
        """Return the submesh of `axes`, in the mesh's order."""
        ordered = tuple(name for name in self.mesh.mesh_dim_names or () if name in axes)
        return self.mesh[ordered if len(ordered) > 1 else ordered[0]]

    @cached_property
    def shards(self) -> DeviceMesh:
        """What ZeRO shards over: `dp`, (`dp_replicate`, `dp_shard`) with hybrid sharding, `dp_cp` with context
        parallelism (its ranks share all parameters).
        """
        if "dp_shard" in (self.mesh.mesh_dim_names or ()):
            return self.sub("dp_replicate", "dp_shard")
        return self.sub("dp", "cp")._flatten(DATA_AND_CONTEXT) if self.degree("cp") > 1 else self.sub("dp")

    @property
    def replicas(self) -> dist.ProcessGroup:
        """The ranks with the same parameters and different tokens, over which gradients are averaged."""
        return self.shards.get_group() if self.degree("cp") > 1 else self.group("dp")

    def parts(self) -> DeviceMesh:
        """`shards` × `tp` without process groups, to say where parts of parameters belong. No communication."""
        shards, stride = self.shards, self.grid.strides["tp"]
        offsets = stride * (torch.arange(self.degree("tp")) - self.coordinate["tp"])
        ranks = shards.mesh[..., None] + offsets
        names = (*(shards.mesh_dim_names or ()), "tp")
        return DeviceMesh(shards.device_type, ranks, mesh_dim_names=names, _init_backend=False)


def build_mesh(grid: RankGrid, *, rank: int, device_type: str, shard_within: int = 0) -> Axes:
    """Create a mesh; its fastest varying dimension is the grid's first axis. Every rank must call this.

    With `shard_within` above 0 the axis `dp` has two dimensions, `dp_replicate` and `dp_shard` with that many
    neighbours; `dp` remains a name for both.
    """
    if dist.get_world_size() != grid.size:
        raise InputError(f"the plan is for {grid.size} ranks, but {dist.get_world_size()} were started: plan again")
    names, degrees = list(reversed(grid.axes)), list(reversed(grid.degrees))
    if shard_within:
        at = names.index("dp")
        names[at : at + 1] = ["dp_replicate", "dp_shard"]
        degrees[at : at + 1] = [degrees[at] // shard_within, shard_within]
    mesh = DeviceMesh(device_type, torch.arange(grid.size).reshape(degrees), mesh_dim_names=tuple(names))
    if shard_within:
        mesh["dp_replicate", "dp_shard"]._flatten("dp")
    return Axes(grid, rank, mesh)
