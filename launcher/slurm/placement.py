"""Which host becomes which node of the plan, so that as little as possible crosses the spine.

The cost of an assignment is the sum over pairs of plan nodes of bytes × levels climbed: 0 under one leaf, 1 where
their leaves meet at the next switch, 2 above that. Small jobs are solved exactly (branch and bound over leaves);
large ones by the better of two fillings, improved by moving a node to the leaf of one of its peers, in exchange for a
node there, as long as that helps: a local optimum, whose distance from the best is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import factorial, prod

from launcher.cluster.readers_slurm import SlurmTopology
from launcher.slurm.traffic import Traffic

EXACT_LIMIT = 100_000  # assignments; branch and bound visits far fewer
MAX_PASSES = 20


@dataclass(frozen=True)
class Assignment:
    """`hosts[i]` is plan node i, under `leaves[i]`; hosts beyond the plan's nodes are spares.

    Costs in bytes × levels; `as_given` is that of Slurm's own order.
    """

    hosts: tuple[str, ...]
    leaves: tuple[str, ...]
    cost: float
    as_given: float
    exact: bool

    @property
    def num_leaves(self) -> int:
        return len(set(self.leaves))


@dataclass(frozen=True)
class Tree:
    """Hosts in Slurm's order, the leaf of each, and the switches above the leaves."""

    hosts: tuple[str, ...]
    leaf: tuple[str, ...]
    parents: Mapping[str, str]

    @classmethod
    def of(cls, hosts: Sequence[str], topology: SlurmTopology | None) -> Tree:
        """Hosts that no leaf names count as standing under one leaf of their own, called `unknown`."""
        leaves = tuple((topology.leaf_of(host) if topology else None) or "unknown" for host in hosts)
        return cls(tuple(hosts), leaves, topology.parents if topology else {})

    @cached_property
    def members(self) -> dict[str, list[int]]:
        """Leaf → its hosts, by index."""
        found: dict[str, list[int]] = {}
        for index, leaf in enumerate(self.leaf):
            found.setdefault(leaf, []).append(index)
        return found

    @cached_property
    def levels(self) -> dict[tuple[str, str], int]:
        """Levels that traffic between two leaves climbs."""
        return {(a, b): self._climb(a, b) for a in self.members for b in self.members}

    def _climb(self, a: str, b: str) -> int:
        if a == b:
            return 0
        above, below = self._path(a), self._path(b)
        common = next((switch for switch in above if switch in below), None)
        return max(above.index(common), below.index(common)) if common else max(len(above), len(below))

    def _path(self, leaf: str) -> list[str]:
        path = [leaf]
        while path[-1] in self.parents and len(path) < 16:
            path.append(self.parents[path[-1]])
        return path


def assign(traffic: Traffic, tree: Tree, *, exact_limit: int = EXACT_LIMIT) -> Assignment:
    """The hosts of a tree in plan order. Exact below `exact_limit` assignments.

    Hosts beyond the plan's nodes are spares: nodes without traffic, which go where they are least in the way.
    """
    sizes = {leaf: len(members) for leaf, members in tree.members.items()}
    num_ways = factorial(len(tree.hosts)) // prod(factorial(size) for size in sizes.values())
    exact = num_ways < exact_limit
    leaves = _Exact(traffic, tree, sizes).best() if exact else _improved(traffic, tree, sizes)
    given = cost(traffic, tree, tree.leaf)
    return Assignment(_hosts(tree, leaves), leaves, cost(traffic, tree, leaves), given, exact)


def cost(traffic: Traffic, tree: Tree, leaves: Sequence[str]) -> float:
    """Bytes × levels of an assignment of plan nodes to leaves."""
    return sum(num_bytes * tree.levels[leaves[a], leaves[b]] for (a, b), num_bytes in traffic.items())


def _hosts(tree: Tree, leaves: Sequence[str]) -> tuple[str, ...]:
    """Hosts of the leaves, in Slurm's order within each."""
    left = {leaf: list(members) for leaf, members in tree.members.items()}
    return tuple(tree.hosts[left[leaf].pop(0)] for leaf in leaves)


class _Exact:
    """Branch and bound: plan nodes take leaves in turn; a branch that already costs more than the best is cut."""

    def __init__(self, traffic: Traffic, tree: Tree, sizes: Mapping[str, int]) -> None:
        self.levels = tree.levels
        self.before: list[list[tuple[int, float]]] = [[] for _ in tree.hosts]  # earlier neighbours of each node
        for (a, b), num_bytes in traffic.items():
            self.before[b].append((a, num_bytes))
        self.left = dict(sizes)
        self.chosen: list[str] = []
        start = _filled(tree, sizes)
        self.found: tuple[float, tuple[str, ...]] = (cost(traffic, tree, start), start)

    def best(self) -> tuple[str, ...]:
        self._extend(0.0)
        return self.found[1]

    def _extend(self, spent: float) -> None:
        node = len(self.chosen)
        if node == len(self.before):
            self.found = (spent, tuple(self.chosen))
            return
        for leaf in [leaf for leaf, room in self.left.items() if room]:
            more = sum(num_bytes * self.levels[self.chosen[other], leaf] for other, num_bytes in self.before[node])
            if spent + more < self.found[0]:
                self.left[leaf] -= 1
                self.chosen.append(leaf)
                self._extend(spent + more)
                self.chosen.pop()
                self.left[leaf] += 1


def _filled(tree: Tree, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Plan order over leaves, leaf by leaf, neighbouring leaves (same parent) one after another."""
    order = sorted(sizes, key=lambda leaf: (tree.parents.get(leaf, ""), -sizes[leaf]))
    return tuple(leaf for leaf in order for _ in range(sizes[leaf]))


def _improved(traffic: Traffic, tree: Tree, sizes: Mapping[str, int]) -> tuple[str, ...]:
    starts = (_filled(tree, sizes), tree.leaf)
    results = [_swapped(traffic, tree, list(start)) for start in starts]
    return min(results, key=lambda leaves: cost(traffic, tree, leaves))


def _swapped(traffic: Traffic, tree: Tree, leaves: list[str]) -> tuple[str, ...]:
    """Swap two plan nodes as long as that lowers the cost."""
    neighbours: list[list[tuple[int, float]]] = [[] for _ in leaves]
    for (a, b), num_bytes in traffic.items():
        neighbours[a].append((b, num_bytes))
        neighbours[b].append((a, num_bytes))

    def at(node: int, leaf: str, other: int) -> float:
        """Cost of `node` under `leaf`; the pair's own traffic stays the same in a swap and is left out."""
        return sum(w * tree.levels[leaf, leaves[peer]] for peer, w in neighbours[node] if peer != other)

    for _ in range(MAX_PASSES):
        improved = False
        for a in range(len(leaves)):
            wanted = {leaves[peer] for peer, _ in neighbours[a]} - {leaves[a]}  # where a peer of this node is
            for b in range(len(leaves)) if wanted else ():
                if leaves[b] not in wanted or leaves[b] == leaves[a]:
                    continue
                before = at(a, leaves[a], b) + at(b, leaves[b], a)
                after = at(a, leaves[b], b) + at(b, leaves[a], a)
                if after < before * (1 - 1e-12):
                    leaves[a], leaves[b] = leaves[b], leaves[a]
                    improved = True
        if not improved:
            break
    return tuple(leaves)
