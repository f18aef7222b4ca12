"""Process groups and the device mesh, from the plan's rank grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from launcher.errors import InputError
from launcher.layout import RankGrid
from launcher.plan.record import Plan


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

    @property
    def shards(self) -> DeviceMesh:
        """What ZeRO shards over: `dp`, or (`dp_replicate`, `dp_shard`) with hybrid sharding."""
        hybrid = "dp_shard" in (self.mesh.mesh_dim_names or ())
        return self.sub("dp_replicate", "dp_shard") if hybrid else self.sub("dp")


def build_mesh(grid: RankGrid, *, rank: int, device_type: str, shard_within: int | None = None) -> Axes:
    """A mesh whose fastest varying dimension is the grid's first axis; every rank must call this.

    With `shard_within` the axis `dp` is two dimensions, `dp_replicate` and `dp_shard`, of which the latter holds so
    many neighbours; `dp` itself stays a name for both.
    """
    if dist.get_world_size() != grid.size:
        raise InputError(f"the plan is for {grid.size} ranks, but {dist.get_world_size()} were started: plan again")
    names, degrees = list(reversed(grid.axes)), list(reversed(grid.degrees))
    if shard_within is not None:
        at = names.index("dp")
        names[at : at + 1] = ["dp_replicate", "dp_shard"]
        degrees[at : at + 1] = [degrees[at] // shard_within, shard_within]
    mesh = DeviceMesh(device_type, torch.arange(grid.size).reshape(degrees), mesh_dim_names=tuple(names))
    if shard_within is not None:
        mesh["dp_replicate", "dp_shard"]._flatten("dp")
    return Axes(grid, rank, mesh)


def shard_size(plan: Plan) -> int:
    """How many data-parallel neighbours share one NVSwitch domain: the ranks that hybrid sharding shards over.

    Raises InputError where the domains do not cut every data-parallel group into equal runs of more than one rank.
    """
    placement, dp = plan.placement, plan.layout.dp
    sizes = set()
    for group in plan.grid.groups("dp"):
        domains = [placement.domain(rank) for rank in group]
        sizes |= {len(list(run)) for _, run in groupby(domains)}
    if len(sizes) != 1 or sizes == {1} or dp % min(sizes):
        raise InputError(
            f"train.hybrid_shard=true shards inside NVSwitch domains and replicates across, but those cut the dp={dp} "
            f"ranks of a group into runs of {', '.join(map(str, sorted(sizes)))}: choose a layout.axis_order with dp "
            "before pp, a larger dp, or train.hybrid_shard=false"
        )
    return sizes.pop()
