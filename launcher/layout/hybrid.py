"""Hybrid sharding: ZeRO inside the NVSwitch domains, replicas across."""

from __future__ import annotations

from itertools import groupby

from launcher.errors import InputError
from launcher.layout.degrees import Layout
from launcher.layout.placement import Placement


def shard_size(layout: Layout, placement: Placement) -> int:
    """How many data-parallel neighbours share one NVSwitch domain: the ranks that hybrid sharding shards over.

    Raises InputError where the domains do not cut every data-parallel group into equal runs of more than one rank, and
    with context parallelism.
    """
    if layout.cp > 1:
        raise InputError(
            f"train.hybrid_shard=true does not go with layout.cp={layout.cp}: set layout.cp=1, or "
            "train.hybrid_shard=false, which shards over dp × cp"
        )
    sizes = set()
    for group in placement.grid.groups("dp"):
        domains = [placement.domain(rank) for rank in group]
        sizes |= {len(list(run)) for _, run in groupby(domains)}
    if len(sizes) != 1 or sizes == {1} or layout.dp % min(sizes):
        raise InputError(
            "train.hybrid_shard=true shards inside NVSwitch domains and replicates across, but those cut the "
            f"dp={layout.dp} ranks of a group into runs of {', '.join(map(str, sorted(sizes)))}: "
            "choose a layout.axis_order with dp before pp, a larger dp, or train.hybrid_shard=false"
        )
    return sizes.pop()
