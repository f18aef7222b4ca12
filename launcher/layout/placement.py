"""Placement of ranks: rank → (node, GPU), and the slowest link that a group of ranks crosses."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import accumulate
from math import gcd, lcm

from launcher.cluster import Cluster
from launcher.cluster.mesh import ring_links
from launcher.layout.grid import RankGrid


class Link(IntEnum):
    """Kinds of links, fast to slow: the largest in a group is the slowest that the group crosses."""

    SAME_GPU = 0
    NVLINK = 1
    PCIE = 2
    LEAF = 3  # through NICs and leaf switches; the traffic of a rail uses one leaf
    SPINE = 4  # through NICs, leaves and the spine
    CORE = 5  # through NICs, leaves, spine and the third tier, or between the groups of a dragonfly


@dataclass(frozen=True)
class Slot:
    """The GPU of a rank: node of the plan, local GPU index there, and the local rank."""

    node: int
    gpu: int
    local_rank: int


@dataclass(frozen=True)
class Placement:
    """Ranks in order over the nodes of a cluster, domain by domain within each node.

    `node_ranks`: how many ranks each node has, where they have different numbers; empty: as many as it has GPUs.
    """

    cluster: Cluster
    grid: RankGrid
    node_ranks: tuple[int, ...] = ()

    @property
    def ranks_per_node(self) -> int:
        """The ranks of a node; the most, where nodes have different numbers."""
        return max(self.node_ranks, default=min(self.cluster.node.num_gpus, self.grid.size))

    @property
    def num_nodes(self) -> int:
        """Nodes that hold at least one rank."""
        return len(self.node_ranks) or -(-self.grid.size // self.cluster.node.num_gpus)

    def ranks_on(self, node: int) -> int:
        """Return how many ranks a node has."""
        return self.node_ranks[node] if self.node_ranks else self.ranks_per_node

    @cached_property
    def _node_ends(self) -> tuple[int, ...]:
        """Rank after the last one of each node, where nodes have different numbers."""
        return tuple(accumulate(self.node_ranks))

    def _node(self, rank: int) -> tuple[int, int]:
        """Return the node of a rank, and its local rank there."""
        if not self.node_ranks:
            return divmod(rank, self.cluster.node.num_gpus)
        node = bisect_right(self._node_ends, rank)
        return node, rank - (self._node_ends[node] - self.node_ranks[node])

    def slot(self, rank: int) -> Slot:
        node, local_rank = self._node(rank)
        return Slot(node, self.cluster.node.gpu_order[local_rank], local_rank)

    def rank_at(self, *, node: int, gpu: int) -> int:
        before = self._node_ends[node] - self.node_ranks[node] if self.node_ranks else node * self.ranks_per_node
        return before + self.cluster.node.gpu_order.index(gpu)

    def domain(self, rank: int) -> tuple[int, int]:
        """Return the NVSwitch domain of a rank: (the nodes that it joins, counted in such sets; index in the node)."""
        node, local_rank = self._node(rank)
        return node // self.cluster.nvlink_nodes, bisect_right(self._domain_ends, local_rank)

    @cached_property
    def _domain_ends(self) -> tuple[int, ...]:
        """Local rank after the last one of each domain: ranks fill a node domain by domain."""
        return tuple(accumulate(len(domain) for domain in self.cluster.node.domains))

    def link(self, a: int, b: int) -> Link:
        """Return the link between two ranks."""
        if a == b:
            return Link.SAME_GPU
        if self.domain(a) == self.domain(b) and self.cluster.node.nvlink != "none":
            return Link.NVLINK if self._wired((a, b)) else Link.PCIE
        nodes = {self._node(a)[0], self._node(b)[0]}
        return Link.PCIE if len(nodes) == 1 else self._tier(nodes, same_rail=self.rail(a) == self.rail(b))

    def _tier(self, nodes: Iterable[int], *, same_rail: bool) -> Link:
        """Return the highest switches between nodes, if traffic stays on its rail or not."""
        if len({self.cluster.pod(node) for node in nodes}) > 1:
            return Link.CORE
        one_leaf = len({self.cluster.leaf(node) for node in nodes}) == 1
        return Link.LEAF if one_leaf and same_rail else Link.SPINE

    def rail(self, rank: int) -> int:
        """Return the rail of a rank's NIC."""
        return self.cluster.rail(self._node(rank)[1])

    def slowest_link(self, ranks: Iterable[int]) -> Link:
        """Return the slowest link of rings over `ranks`: they use a rail on which all of their nodes have ranks."""
        members = list(ranks)
        if len(members) < 2:
            return Link.SAME_GPU
        nodes = {self._node(rank)[0] for rank in members}
        if len({self.domain(rank) for rank in members}) == 1:
            linked = self.cluster.node.nvlink != "none" and self._wired(members)
            return Link.NVLINK if linked else Link.PCIE
        return Link.PCIE if len(nodes) == 1 else self._tier(nodes, same_rail=common_rails(self.cluster, members)[0])

    def axis_link(self, axis: str) -> Link:
        """Return the slowest link that any group of `axis` crosses; `ep` is the inner part of `dp`."""
        if self.grid.degree(axis) == 1:
            return Link.SAME_GPU
        if self.stays_in_domain(axis):
            linked = self.cluster.node.nvlink != "none" and all(map(self._wired, self._distinct(axis)))
            return Link.NVLINK if linked else Link.PCIE
        per_node = self.cluster.node.num_gpus
        if not self._parts(axis, per_node):
            return Link.PCIE
        if self._parts(axis, per_node * self.cluster.nodes_per_pod):
            return Link.CORE
        if any(self._parts(axis, per_node * end) for end in self.cluster.leaf_ends):
            return Link.SPINE
        shared, _ = rails_of_groups(
            self.cluster, ranks=self.grid.degree(axis), stride=self.grid.strides[axis], world=self.grid.size
        )
        return Link.LEAF if shared else Link.SPINE

    def _wired(self, ranks: Iterable[int]) -> bool:
        """Return whether rings over ranks of one domain stay on NVLink, where it joins only some of the pairs."""
        counts = self.cluster.node.nvlinks
        return counts is None or ring_links(counts, tuple(self.slot(rank).gpu for rank in ranks)) > 0

    def _distinct(self, axis: str) -> Iterable[tuple[int, ...]]:
        """Return the groups of an axis, where which one it is matters: those of one node, for all are alike."""
        groups = self.grid.groups(axis) if self.cluster.node.nvlinks else ()
        return (group for group in groups if group[0] < self.cluster.node.num_gpus)

    def stays_in_domain(self, axis: str) -> bool:
        """Return whether every group of `axis` is inside one NVSwitch domain."""
        joined = self.cluster.nvlink_nodes
        ends = self._domain_ends if joined == 1 else (joined * self.cluster.node.num_gpus,)
        return not any(self._parts(axis, end) for end in ends)

    def _parts(self, axis: str, boundary: int) -> bool:
        """Return whether a boundary splits some group of an axis; see `splits`."""
        degree = self.grid.degree(axis)
        return splits(boundary, ranks=degree, stride=self.grid.strides[axis], world=self.grid.size)


def splits(boundary: int, *, ranks: int, stride: int, world: int) -> bool:
    """Return whether a boundary before rank `boundary` (and its multiples) splits some group; 0: there is none.

    Groups of `ranks` ranks `stride` apart tile the world in blocks of `ranks` × `stride`, so a boundary splits some
    group exactly if it is not a multiple of that: no group needs to be enumerated.
    """
    return ranks > 1 and 0 < boundary < world and boundary % (ranks * stride) != 0


def rails_of_groups(cluster: Cluster, *, ranks: int, stride: int, world: int) -> tuple[bool, int]:
    """For groups of `ranks` ranks `stride` apart that tile a world: return whether the nodes of each group have ranks
    on a common rail, and the largest number of rails that a group uses on one node.
    """
    per_node = cluster.node.num_gpus
    if cluster.rails == 1 or stride % per_node == 0:
        return True, 1
    blocks = range(0, min(world, lcm(ranks * stride, per_node)), ranks * stride)
    firsts = {(block + first) % per_node for block in blocks for first in range(stride)}
    period = per_node // gcd(stride, per_node)  # ranks after which a group's GPUs repeat: two periods cover all
    shown = min(ranks, 2 * period + ranks % period)
    found = [common_rails(cluster, range(first, first + shown * stride, stride)) for first in firsts]
    return all(shared for shared, _ in found), max(rails for _, rails in found)


def common_rails(cluster: Cluster, ranks: Iterable[int]) -> tuple[bool, int]:
    """Return whether the nodes of a group have ranks on a common rail, and the most rails that it uses on one node."""
    by_node: dict[int, set[int]] = {}
    for rank in ranks:
        node, local_rank = divmod(rank, cluster.node.num_gpus)
        by_node.setdefault(node, set()).add(cluster.rail(local_rank))
    return bool(set.intersection(*by_node.values())), max(map(len, by_node.values()))
