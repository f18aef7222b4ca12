"""What the planner assumes of every link of a cluster, and where each number comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster import Cluster
from launcher.cluster.mesh import fewest_links
from launcher.cost.collectives import collective_s, latency_s
from launcher.cost.constants import DEFAULT
from launcher.cost.network import (
    LINE_FRACTION,
    NVLINK_FRACTION,
    PCIE_FRACTION,
    Group,
    fabric_of,
    group_of,
    nvlink_shares,
)
from launcher.layout import Layout, Link, Placement, RankGrid
from launcher.text import printable

LARGE = 2.0**30
MOST_SHOWN = 100  # characters of a source
KEY = re.compile(r"^\s*(\w+):\s*([^#]*?)\s*(?:#\s*(.*))?$")


@dataclass(frozen=True)
class LinkFacts:
    """One kind of link. `nameplate`: bytes/s one way, of a GPU or of a node, None where unknown; `reached`: bus
    bandwidth of large collectives; `latency_s`: of a small one.
    """

    name: str
    what: str
    nameplate: float | None
    reached: float | None
    latency_s: float | None
    sources: tuple[str, ...]


@dataclass(frozen=True)
class AxisFacts:
    """The groups of one axis of a plan, and what they cross."""

    axis: str
    degree: int
    groups: int
    first: tuple[int, ...]
    link: str
    reached: float | None = None  # bus bandwidth of a large all-reduce over one of them, all groups at once


@dataclass(frozen=True)
class KeySources:
    """Where keys stand: file and comment, by key of the cluster or of its GPU."""

    known: Mapping[str, str]

    @classmethod
    def of(cls, files: Sequence[Path], overrides: Sequence[str]) -> KeySources:
        """`files` from the most general to the most special."""
        known: dict[str, str] = {}
        for file in files:
            for line in file.read_text(encoding="utf-8").splitlines():
                match = KEY.match(line)
                if match and match[2]:
                    comment = f": {match[3]}" if match[3] else ""
                    known[match[1]] = f"{file.parent.name}/{file.name}{comment}"
        for word in overrides:
            key, _, _ = word.lstrip("+").partition("=")
            if key.startswith("cluster."):
                known[key.rpartition(".")[2]] = "the command line"
        return cls(known)

    def of_key(self, key: str) -> str:
        return printable(f"{key}: {self.known.get(key, 'the default')}", longest=MOST_SHOWN)


def link_facts(cluster: Cluster, sources: KeySources) -> list[LinkFacts]:
    """Every kind of link that the cluster has, the fastest first."""
    node, constants = cluster.node, DEFAULT
    fabric = fabric_of(cluster, constants)
    found, why = [], tuple[str, ...]()
    if node.nvlink != "none" and node.domain_size > 1:
        size = cluster.domain_size
        ring, pair = nvlink_shares(cluster, size, 1, size) if node.nvlinks else (1.0, 1.0)
        group = Group(size, size, size, 1, ring_share=ring, pair_share=pair)
        what = {"nvswitch": "through NVSwitch", "direct": "GPU to GPU", "bridge": "a bridge of pairs"}[node.nvlink]
        what = "pairs, no switch" if node.nvlinks else what
        what = f"NVSwitch of {cluster.nvlink_nodes} nodes" if cluster.nvlink_nodes > 1 else what
        nameplate = node.gpu.nvlink_bytes_per_s or None
        used = f"the links to 2 of {fabric.direct_peers} peers, which a ring uses" if fabric.direct_peers > 2 else "it"
        share = f"collectives reach {NVLINK_FRACTION:.1%} of {used} (vTrain, NCCL on A100)"
        why = (sources.of_key("nvlink_gbytes_per_s"), _measured(cluster, "nvlink") or share)
        found.append(LinkFacts("NVLink", f"a GPU, {what}", nameplate, *_reached(cluster, group), why))
    apart = node.nvlinks is not None and not fewest_links(node.nvlinks, node.gpu_order)
    if node.num_gpus > node.domain_size or node.nvlink == "none" or apart:
        size = node.num_gpus
        group = Group(size, 1, size, 1)
        cpu = node.gpu.kind == "cpu"
        nameplate = node.gpu.pcie_bytes_per_s or None
        share = "measured here with gloo" if cpu else f"rings reach {PCIE_FRACTION:.0%} of it (nccl-tests#178)"
        why = (() if cpu else (sources.of_key("pcie_gbytes_per_s"),)) + (_measured(cluster, "pcie") or share,)
        name, what = ("memory", "CPU ranks of a node") if cpu else ("PCIe", "a GPU, without NVLink to its peer")
        reached, seconds = _reached(cluster, group) if size > 1 else (None, None)
        found.append(LinkFacts(name, what, nameplate, reached, seconds, why))
    if node.num_nics:
        line = node.num_nics * node.nic_bytes_per_s
        nodes = min(max(2, cluster.num_nodes), cluster.nodes_per_leaf or max(2, cluster.num_nodes), 4)
        group = Group(nodes * node.num_gpus, node.domain_size, node.num_gpus, max(2, nodes))
        share = f"NCCL reaches {LINE_FRACTION[cluster.fabric]:.0%} of the line ({cluster.fabric})"
        why = (sources.of_key("num_nics"), sources.of_key("nic_gbps"), _measured(cluster, "leaf") or share)
        seconds = latency_s(fabric, group)
        reached = fabric.node_bytes_per_s / constants.inter_node_fraction
        found.append(LinkFacts("NICs", "a node, under a leaf", line, reached, seconds, why))
        if _has_spine(cluster):
            spine = reached / fabric.oversubscription
            leaf = "leaf_sizes" if cluster.leaf_sizes else "nodes_per_leaf"
            why = (sources.of_key("oversubscription"), sources.of_key(leaf))
            why += (said,) if (said := _measured(cluster, "spine")) else ()
            found.append(
                LinkFacts("spine", "a node, leaf to leaf", line / fabric.oversubscription, spine, seconds, why)
            )
        if 0 < cluster.nodes_per_pod < cluster.num_nodes:
            taper = max(fabric.oversubscription, fabric.core_oversubscription)
            why = (sources.of_key("core_oversubscription"), sources.of_key("nodes_per_pod"))
            found.append(LinkFacts("core", "a node, pod to pod", line / taper, reached / taper, seconds, why))
    return found


def _has_spine(cluster: Cluster) -> bool:
    return cluster.leaf(cluster.num_nodes - 1) > 0 or cluster.rails > 1


def _reached(cluster: Cluster, group: Group) -> tuple[float, float]:
    """Bus bandwidth of a large all-reduce, and seconds of a small one."""
    fabric = fabric_of(cluster, DEFAULT)
    seconds = collective_s(fabric, group, "all_reduce", LARGE)
    busbw = LARGE / seconds * 2 * (group.ranks - 1) / group.ranks
    return busbw, collective_s(fabric, group, "all_reduce", 8.0)


def _measured(cluster: Cluster, link: str) -> str | None:
    """When and where a link was measured; None where it was not."""
    curves = [curve for curve in cluster.measured.collectives if curve.link == link]
    if curves:
        when = f" on {cluster.measured.date}" if cluster.measured.date else ""
        hosts = f", {', '.join(cluster.measured.hosts)}" if cluster.measured.hosts else ""
        return f"measured{when}{hosts}: {', '.join(dict.fromkeys(c.operation for c in curves))}"
    return "busbw_gbytes_per_s, as measured" if link in cluster.node.busbw_bytes_per_s else None


LINK_WORDS = {
    Link.SAME_GPU: "nothing",
    Link.NVLINK: "NVLink",
    Link.PCIE: "PCIe",
    Link.LEAF: "NICs and a leaf",
    Link.SPINE: "NICs, leaves and spine",
    Link.CORE: "NICs, leaves, spine and core",
}


def axis_facts(cluster: Cluster, layout: Layout) -> list[AxisFacts]:
    """The axes of a plan with more than one rank, the fastest varying first."""
    grid = RankGrid.of(layout)
    placement = Placement(cluster, grid)
    cpu = cluster.node.gpu.kind == "cpu"
    found = []
    for axis in (*grid.axes, "ep"):
        degree = grid.degree(axis)
        if degree > 1:
            link = placement.axis_link(axis)
            words = "memory" if cpu and link is Link.PCIE else LINK_WORDS[link]
            reached = _reached(cluster, group_of(cluster, layout, axis))[0]
            found.append(AxisFacts(axis, degree, grid.size // degree, grid.group(axis, 0), words, reached))
    return found
