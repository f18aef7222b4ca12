"""Where the ranks sit: rank → (node, GPU), and the slowest link that a group of ranks crosses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from launcher.cluster import Cluster
from launcher.layout.grid import RankGrid


class Link(IntEnum):
    """Kinds of links, fast to slow: the largest in a group is the slowest that the group crosses."""

    SAME_GPU = 0
    NVLINK = 1
    PCIE = 2
    LEAF = 3  # through NICs and one leaf switch
    SPINE = 4  # through NICs, leaves and the spine


@dataclass(frozen=True)
class Slot:
    """The GPU that a rank runs on: node of the plan, local GPU index there, and the local rank."""

    node: int
    gpu: int
    local_rank: int


@dataclass(frozen=True)
class Placement:
    """Ranks in order over the nodes of a cluster, domain by domain within each node."""

    cluster: Cluster
    grid: RankGrid

    @property
    def ranks_per_node(self) -> int:
        return min(self.cluster.node.num_gpus, self.grid.size)

    @property
    def num_nodes(self) -> int:
        """Nodes that hold at least one rank."""
        return -(-self.grid.size // self.cluster.node.num_gpus)

    def slot(self, rank: int) -> Slot:
        node, local_rank = divmod(rank, self.cluster.node.num_gpus)
        return Slot(node, self.cluster.node.gpu_order[local_rank], local_rank)

    def rank_at(self, *, node: int, gpu: int) -> int:
        return node * self.cluster.node.num_gpus + self.cluster.node.gpu_order.index(gpu)

    def domain(self, rank: int) -> tuple[int, int]:
        """(node, index of the NVSwitch domain in it) of a rank."""
        slot = self.slot(rank)
        domains = self.cluster.node.domains
        return slot.node, next(i for i, d in enumerate(domains) if slot.gpu in d)

    def leaf(self, node: int) -> int:
        """Leaf switch of a node of the plan, nodes filling leaves in order."""
        per_leaf = self.cluster.nodes_per_leaf
        return node // per_leaf if per_leaf else 0

    def link(self, a: int, b: int) -> Link:
        """The link between two ranks."""
        if a == b:
            return Link.SAME_GPU
        (node_a, domain_a), (node_b, domain_b) = self.domain(a), self.domain(b)
        if node_a == node_b:
            return Link.NVLINK if domain_a == domain_b and self.cluster.node.nvlink != "none" else Link.PCIE
        return Link.LEAF if self.leaf(node_a) == self.leaf(node_b) else Link.SPINE

    def slowest_link(self, ranks: Iterable[int]) -> Link:
        """The slowest link between any two of `ranks`."""
        nodes = set()
        domains = set()
        members = list(ranks)
        if len(members) < 2:
            return Link.SAME_GPU
        for rank in members:
            domain = self.domain(rank)
            nodes.add(domain[0])
            domains.add(domain)
        if len(nodes) == 1:
            return self.link(members[0], members[1]) if len(domains) == 1 else Link.PCIE
        return Link.LEAF if len({self.leaf(node) for node in nodes}) == 1 else Link.SPINE

    def axis_link(self, axis: str) -> Link:
        """The slowest link that any group of `axis` crosses."""
        return max((self.slowest_link(group) for group in self.grid.groups(axis)), default=Link.SAME_GPU)
