"""The shape of a group of ranks on a cluster, and what its links carry."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import NamedTuple

from launcher.cluster import Cluster
from launcher.cluster.measured import Curve
from launcher.cluster.mesh import fewest_links, links_of_each, ring_links
from launcher.cost.constants import Constants
from launcher.cost.gloo import gloo_curves
from launcher.layout import Layout
from launcher.layout.placement import rails_of_groups, splits


class Group(NamedTuple):
    """Ranks that communicate: how many, how many of them in one NVSwitch domain and on one node, over how many nodes.

    The worst group of an axis where groups differ. `spine`: its rings cross from leaf to leaf, for its nodes are on
    several, or have no rail in common. `rails`: of a rail-optimised fabric, those that its ranks of a node are on;
    between them all other traffic of its nodes crosses the spine, but for what PXN takes over NVLink first. `core`: its
    rings cross from pod to pod, through a third tier. Nodes that NVLink joins count as one. Where NVLinks join pairs of
    GPUs unequally, `ring_share` of a GPU's links are in rings over the group; `pair_share` join the pair with fewest.
    """

    ranks: int
    per_domain: int
    per_node: int
    nodes: int
    spine: bool = False
    rails: int = 1
    core: bool = False
    ring_share: float = 1.0
    pair_share: float = 1.0

    @property
    def inside_domain(self) -> bool:
        return self.per_domain >= self.ranks


ALONE = Group(1, 1, 1, 1)


class AxisGroups(NamedTuple):
    """The groups of a layout, by axis. `replicas`: dp × cp, the ranks with the same parameters; `edp`: those of them
    with the same experts; `sdp`: those that shard them together; `rdp`: those with the same shard.
    """

    tp: Group
    cp: Group
    dp: Group
    pp: Group
    ep: Group
    replicas: Group
    edp: Group
    sdp: Group
    rdp: Group

    def of(self, axis: str) -> Group:
        """The group of a message's axis."""
        found: Group = self.replicas if axis == "dp" else getattr(self, axis)
        return found


def group_of(cluster: Cluster, layout: Layout, axis: str) -> Group:
    """The group of `axis`."""
    found: Group = getattr(groups_of(cluster, layout), axis)
    return found


def groups_of(cluster: Cluster, layout: Layout) -> AxisGroups:
    """The groups of every axis, ranks filling nodes in order with the axes of `axis_order`, fastest first."""
    world, stride, found = layout.world_size, 1, {}
    for axis in layout.axis_order.split("-"):
        degree = layout.degree(axis)
        found[axis] = _group(cluster, world, degree, stride)
        if axis == "dp":
            found["ep"] = _group(cluster, world, layout.ep, stride)
            found["edp"] = _group(cluster, world, degree // layout.ep, stride * layout.ep)
            across, _ = layout.shard_span
            found["sdp"] = _group(cluster, world, across, stride)
            found["rdp"] = _group(cluster, world, degree // across, stride * across)
        if axis == "cp":
            _, within = layout.shard_span
            shared, others = (
                _group(cluster, world, within, stride),
                _group(cluster, world, degree // within, stride * within),
            )
        stride *= degree
    dp, cp = found["dp"], found["cp"]
    if layout.cp > 1:
        dp, found["edp"] = joined(dp, cp), joined(found["edp"], cp)
        found["sdp"], found["rdp"] = joined(found["sdp"], shared), joined(found["rdp"], others)
    return AxisGroups(**found, replicas=dp)


def _group(cluster: Cluster, world: int, ranks: int, stride: int) -> Group:
    """The worst group of `ranks` ranks `stride` apart."""
    if ranks == 1:
        return ALONE
    node = cluster.node
    size = min(node.num_gpus * cluster.nvlink_nodes, world)
    nodes = _blocks(ranks, stride, size, world)
    per_node = -(-ranks // nodes)
    domains = nodes if cluster.domain_size >= size else _blocks(ranks, stride, cluster.domain_size, world)
    domains = domains if node.nvlink != "none" else ranks
    per_domain = min(per_node, -(-ranks // domains))
    ring, pair = nvlink_shares(cluster, ranks, stride, world) if node.nvlinks else (1.0, 1.0)
    per_domain = per_domain if ring else 1
    if nodes == 1:
        return Group(ranks, per_domain, per_node, nodes, ring_share=ring, pair_share=pair)
    shared, rails = rails_of_groups(cluster, ranks=ranks, stride=stride, world=world)
    core = splits(cluster.nodes_per_pod * node.num_gpus, ranks=ranks, stride=stride, world=world)
    ends = (end * node.num_gpus for end in cluster.leaf_ends)
    spine = core or not shared or any(splits(end, ranks=ranks, stride=stride, world=world) for end in ends)
    return Group(ranks, per_domain, per_node, nodes, spine, rails, core, ring, pair)


def nvlink_shares(cluster: Cluster, ranks: int, stride: int, world: int) -> tuple[float, float]:
    """Of a GPU's NVLinks, those in rings over the GPUs of a group's node, and between the pair that has fewest: of the
    worst group. 1 where no two of a group are on one node.
    """
    counts, order = cluster.node.nvlinks or (), cluster.node.gpu_order
    together: set[tuple[int, ...]] = set()
    for start in range(0, min(world, lcm(ranks * stride, len(order))), ranks * stride):
        for first in range(start, start + stride):
            by_node: dict[int, list[int]] = {}
            for rank in range(first, first + ranks * stride, stride):
                by_node.setdefault(rank // len(order), []).append(order[rank % len(order)])
            together |= {tuple(gpus) for gpus in by_node.values() if len(gpus) > 1}
    each = links_of_each(counts) or 1
    shares = [(ring_links(counts, gpus) / each, fewest_links(counts, gpus) / each) for gpus in together]
    return (min(ring for ring, _ in shares), min(pair for _, pair in shares)) if shares else (1.0, 1.0)


def joined(one: Group, other: Group) -> Group:
    """The group that two axes of a layout span together: each member of one has a group of the other."""
    ranks, nodes = one.ranks * other.ranks, one.nodes * other.nodes
    per_node = -(-ranks // nodes)
    per_domain, spine = min(per_node, one.per_domain * other.per_domain), one.spine or other.spine
    rails = min(per_node, one.rails * other.rails)
    ring, pair = min(one.ring_share, other.ring_share), min(one.pair_share, other.pair_share)
    return Group(ranks, per_domain, per_node, nodes, spine, rails, one.core or other.core, ring, pair)


def ends_of(group: Group) -> Group:
    """The pair of a group's first and last rank."""
    per_domain, per_node, nodes = (min(2, size) for size in (group.per_domain, group.per_node, group.nodes))
    pair = group.pair_share
    return Group(2, per_domain, per_node, nodes, group.spine, group.rails, group.core, pair, pair)


def _blocks(ranks: int, stride: int, size: int, world: int) -> int:
    """Into how many blocks of `size` neighbouring ranks a group of `ranks` ranks `stride` apart falls, at worst."""
    if ranks == 1 or stride >= size:
        return ranks
    span, group = (ranks - 1) * stride, ranks * stride
    starts = {0}
    if group % size and size % group:
        starts = {start % size for start in range(0, min(world, lcm(group, size)), group)}
    firsts = {first for s in starts for first in (s, s + stride - 1, min(max(s, size - 1), s + stride - 1))}
    return max((first + span) // size - first // size for first in firsts) + 1


@dataclass(frozen=True)
class Fabric:
    """Rates and latencies of a cluster's links, as collectives reach them."""

    nvlink_bytes_per_s: float  # nameplate, per direction
    pcie_bytes_per_s: float
    node_bytes_per_s: float  # all NICs of a node
    gpus_per_node: int
    gpus_together: int  # of the nodes that NVLink joins, which count as one
    oversubscription: float
    core_oversubscription: float
    base_latency_s: float
    hop_latency_s: float
    local_latency_s: float
    ring_hop_s: float  # of one step of a ring, from node to node, and inside a node
    local_ring_hop_s: float
    send_lead: float = 1.0  # rate between two GPUs over that of collectives between nodes
    gather_share: float = 0.5  # all-gather or reduce-scatter over an all-reduce, inside a node
    group_contention: float = 1.0  # of bytes, where several groups share a node
    direct_peers: int = 0  # GPUs that each is joined to by links of its own, without a switch
    curves: tuple[Curve, ...] = ()  # measured
    job_fraction: float = 1.0  # of measured rates between nodes, what training reaches
    pxn: bool = False  # all-to-all stays on its rail between nodes
    on_cpu: bool = False

    def nvlink_rate(self, ranks: int, share: float = 1.0) -> float:
        """Bytes/s of a GPU's NVLinks that a ring over `ranks` of its domain uses: with links of their own to each peer,
        those to its two neighbours (one pair of a four-GPU board: 72 to 77 GB/s busbw of 300 GB/s); `share` of them
        where pairs have unequal numbers.
        """
        if not self.direct_peers:
            return self.nvlink_bytes_per_s * share
        return self.nvlink_bytes_per_s * min(max(1, ranks - 1), 2, self.direct_peers) / self.direct_peers


# Latency of a small all-reduce: about 63 µs over 32 nodes of HDR InfiniBand (nccl#652), 161 µs over 2 nodes of EFA
# (awsome-distributed-training). As base + hop · log2(nodes). RoCE is taken as InfiniBand, Slingshot as RoCE (its frames
# are Ethernet's; nothing was measured), TCP as 50 µs a hop.
BASE_LATENCY_S = {
    "infiniband": 30e-6,
    "roce": 30e-6,
    "slingshot": 30e-6,
    "efa": 110e-6,
    "ethernet": 100e-6,
    "none": 30e-6,
}
HOP_LATENCY_S = {"infiniband": 7e-6, "roce": 8e-6, "slingshot": 8e-6, "efa": 50e-6, "ethernet": 50e-6, "none": 7e-6}
# A step of NCCL's rings with the Simple protocol: from node to node over InfiniBand, over NVLink, over PCIe (NCCL 2.18,
# src/graph/tuning.cc, hwLat); slower networks take a hop of their trees at least.
RING_HOP_S, NVLINK_RING_HOP_S, PCIE_RING_HOP_S = 14e-6, 3.4e-6, 5.7e-6
# Line rate that NCCL reaches: 192 of 200 GB/s on DGX A100, 187 on Azure NDv4, 86–91 of 100 on 4-NIC boxes, 78 GB/s of
# (inflated by the 2-node tree) 50 on p4de: EFA is taken at its sustained 0.6.
LINE_FRACTION = {"infiniband": 0.94, "roce": 0.85, "slingshot": 0.85, "efa": 0.65, "ethernet": 0.8, "none": 0.94}
# One GPU sending to one on another node: 19.3 of 25 GB/s between DGX A100 (FlagPerf), of the line rate above, which all
# eight reach together.
SEND_FRACTION = 0.82
# Ring over PCIe switches and the host bridge: 20 of 32 GB/s between bridged pairs (nccl-tests#178).
PCIE_FRACTION = 0.62
# Gloo over loopback between CPU ranks, per rank with a core of its own: 0.9 ms for 1 KiB and 0.19 GB/s for 4 MiB with
# eight ranks on two cores (recipe collectives).
LOOPBACK_BYTES_PER_S = 0.8e9
LOOPBACK_LATENCY_S = 110e-6
# Bus bandwidth of a large all-reduce over the nameplate: 229 of 300 GB/s in the table of collectives.py.
NVLINK_FRACTION = 0.765


def fabric_of(cluster: Cluster, constants: Constants) -> Fabric:
    """The fabric of a cluster; where the cluster file has a measured bus bandwidth, that in place of the nameplate."""
    node, name = cluster.node, cluster.fabric
    busbw = node.busbw_bytes_per_s
    line = node.num_nics * node.nic_bytes_per_s * LINE_FRACTION[name]
    across = busbw.get("leaf") or busbw.get("spine") or line
    nvlink = busbw["nvlink"] / NVLINK_FRACTION if "nvlink" in busbw else node.gpu.nvlink_bytes_per_s
    cpu = node.gpu.kind == "cpu"
    direct = node.nvlink == "direct" and not node.nvlinks
    return Fabric(
        nvlink_bytes_per_s=nvlink if node.nvlink != "none" else 0.0,
        pcie_bytes_per_s=busbw.get("pcie") or node.gpu.pcie_bytes_per_s * PCIE_FRACTION or LOOPBACK_BYTES_PER_S,
        node_bytes_per_s=across * constants.inter_node_fraction,
        gpus_per_node=node.num_gpus,
        gpus_together=node.num_gpus * cluster.nvlink_nodes,
        oversubscription=across / busbw["spine"] if "spine" in busbw else cluster.oversubscription,
        core_oversubscription=cluster.core_oversubscription,
        pxn=cluster.pxn and node.nvlink == "nvswitch",
        on_cpu=cpu,
        base_latency_s=BASE_LATENCY_S[name],
        hop_latency_s=HOP_LATENCY_S[name],
        gather_share=constants.gather_share,
        group_contention=constants.group_contention if node.nvlink == "nvswitch" else 1.0,
        direct_peers=node.domain_size - 1 if direct and "nvlink" not in busbw else 0,
        send_lead=SEND_FRACTION / constants.inter_node_fraction,
        local_latency_s=LOOPBACK_LATENCY_S if cpu else 20e-6,
        ring_hop_s=max(RING_HOP_S, HOP_LATENCY_S[name]),
        local_ring_hop_s=NVLINK_RING_HOP_S if node.nvlink == "nvswitch" else PCIE_RING_HOP_S,
        curves=cluster.measured.collectives or (gloo_curves() if cpu else ()),
        job_fraction=constants.inter_node_fraction,
    )
