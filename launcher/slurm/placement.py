"""Assigns hosts to nodes of the plan, so that as little traffic as possible crosses the spine.

The cost of an assignment is the sum over pairs of plan nodes of bytes × levels climbed: 0 under one leaf, 1 if their
leaves share the next switch, 2 above that. Small jobs are solved exactly (branch and bound over leaves). Large ones
use the best of several orders over the leaves, including Slurm's, improved by swapping nodes as long as that helps and
time is left; if the nodes form a grid, a lower bound limits the distance from the optimum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from math import factorial, prod
from random import Random

from launcher.cluster.readers_slurm import SlurmTopology
from launcher.slurm.cut_bound import least_cut
from launcher.slurm.exchange import exchanged
from launcher.slurm.tiling import orders
from launcher.slurm.traffic import NodeTraffic

EXACT_LIMIT = 100_000  # assignments; branch and bound visits far fewer
BUDGET_S = 2.0  # of CPU, while the job's GPUs wait
MAX_DEPTH = 16
SMALL = 512  # hosts: above, exchanges from other starts take too long
OTHER_STARTS = 32


@dataclass(frozen=True)
class Assignment:
    """`hosts[i]` is plan node i, under `leaves[i]`; hosts beyond the plan's nodes are spares.

    Costs in bytes × levels; `as_given` is that of Slurm's order, `least` a lower bound of all assignments.
    """

    hosts: tuple[str, ...]
    leaves: tuple[str, ...]
    cost: float
    as_given: float
    least: float
    exact: bool

    @property
    def num_leaves(self) -> int:
        return len(set(self.leaves))

    @property
    def excess(self) -> float | None:
        """The largest possible excess over the optimum, as a fraction of it; None if unknown."""
        if self.exact or self.cost <= 0:
            return 0.0
        return self.cost / self.least - 1 if self.least > 0 else None


class Levels(dict[tuple[str, str], int]):
    """(leaf, leaf) → levels that traffic between them climbs, each computed once."""

    def __init__(self, paths: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        self._paths = paths

    def __missing__(self, leaves: tuple[str, str]) -> int:
        above, below = (self._paths[leaf] for leaf in leaves)
        common = next((switch for switch in above if switch in below), None)
        climbed = max(above.index(common), below.index(common)) if common else max(len(above), len(below))
        self[leaves] = climbed
        return climbed


@dataclass(frozen=True)
class Tree:
    """Hosts in Slurm's order, the leaf of each, and the switches above the leaves."""

    hosts: tuple[str, ...]
    leaf: tuple[str, ...]
    parents: Mapping[str, str]

    @classmethod
    def of(cls, hosts: Sequence[str], topology: SlurmTopology | None) -> Tree:
        """Build the tree; hosts without a known leaf are under one leaf called `unknown`."""
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
    def paths(self) -> dict[str, tuple[str, ...]]:
        """Leaf → the leaf and the switches above it."""
        return {leaf: self._path(leaf) for leaf in self.members}

    @cached_property
    def levels(self) -> Levels:
        """The levels that traffic between two leaves climbs."""
        return Levels(self.paths)

    def sizes(self, height: int) -> list[int]:
        """Return the hosts under each switch at a height (leaves: 0), in the order in which leaves are filled."""
        found: dict[str, int] = {}
        for leaf in self.filled:
            switch = self.paths[leaf][min(height, len(self.paths[leaf]) - 1)]
            found[switch] = found.get(switch, 0) + len(self.members[leaf])
        return list(found.values())

    @property
    def heights(self) -> range:
        """The heights at which traffic may cross between switches; only that of leaves if their depths differ."""
        depths = {len(path) for path in self.paths.values()}
        return range(max(depths) if len(depths) == 1 else 1)

    @cached_property
    def filled(self) -> tuple[str, ...]:
        """Leaves in the order in which nodes fill them: switch by switch, large ones first."""
        under: dict[str, int] = {}
        for leaf, path in self.paths.items():
            for switch in path:
                under[switch] = under.get(switch, 0) + len(self.members[leaf])

        def place(leaf: str) -> list[tuple[int, str]]:
            return [(-under[switch], switch) for switch in reversed(self.paths[leaf][1:])]

        return tuple(sorted(self.members, key=lambda leaf: (place(leaf), -under[leaf])))

    def _path(self, leaf: str) -> tuple[str, ...]:
        path = [leaf]
        while path[-1] in self.parents and len(path) < MAX_DEPTH:
            path.append(self.parents[path[-1]])
        return tuple(path)


def assign(
    traffic: NodeTraffic,
    tree: Tree,
    *,
    exact_limit: int = EXACT_LIMIT,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.process_time,
) -> Assignment:
    """Assign the hosts of a tree to plan nodes. Exact below `exact_limit` assignments, else the best within `budget_s`.

    Hosts beyond the plan's nodes are spares: nodes without traffic, placed where they cost least.
    """
    until = clock() + budget_s
    sizes = [len(members) for members in tree.members.values()]
    exact = len(tree.hosts) < EXACT_LIMIT and _num_ways(sizes, most=exact_limit) < exact_limit
    given = cost(traffic, tree, tree.leaf)
    if exact:
        leaves = _Exact(traffic, tree).best()
        spent = least = cost(traffic, tree, leaves)
    else:
        leaves = _improved(traffic, tree, until, clock)
        spent = cost(traffic, tree, leaves)
        least = min(spent, sum(least_cut(traffic, tree.sizes(height)) for height in tree.heights))
    return Assignment(_hosts(tree, leaves), leaves, spent, given, least, exact)


def _num_ways(sizes: Sequence[int], *, most: int) -> int:
    """Return the number of ways to distribute nodes over leaves of these sizes, at most `most`."""
    if len(sizes) > 1 and sum(sizes) > 64:
        return most
    return min(most, factorial(sum(sizes)) // prod(factorial(size) for size in sizes))


def cost(traffic: NodeTraffic, tree: Tree, leaves: Sequence[str]) -> float:
    """Return the bytes × levels of an assignment of plan nodes to leaves."""
    levels = tree.levels
    return sum(num_bytes * levels[leaves[a], leaves[b]] for (a, b), num_bytes in traffic.edges.items())


def _hosts(tree: Tree, leaves: Sequence[str]) -> tuple[str, ...]:
    """Return the hosts of the leaves, in Slurm's order within each."""
    left = {leaf: iter(members) for leaf, members in tree.members.items()}
    return tuple(tree.hosts[next(left[leaf])] for leaf in leaves)


def _filled(tree: Tree, order: Sequence[int], leaves: Sequence[str]) -> tuple[str, ...]:
    """Fill the leaves with nodes in the given order, spares last; return the leaf of each node."""
    seats = chain.from_iterable(repeat(leaf, len(tree.members[leaf])) for leaf in leaves)
    found = [""] * len(tree.hosts)
    for node, leaf in zip(chain(order, range(len(order), len(tree.hosts))), seats, strict=True):
        found[node] = leaf
    return tuple(found)


def _improved(traffic: NodeTraffic, tree: Tree, until: float, clock: Callable[[], float]) -> tuple[str, ...]:
    """Improve the best order over the leaves by swaps; for a small job also from other starts."""
    best, least = tree.leaf, cost(traffic, tree, tree.leaf)
    tried = list(orders(traffic, [tree.sizes(height) for height in tree.heights], len(tree.hosts)))
    for order in tried:
        leaves = _filled(tree, order, tree.filled)
        spent = cost(traffic, tree, leaves)
        if spent < least:
            best, least = leaves, spent
        if clock() > until:
            return best
    found = [exchanged(traffic, tree.levels, best, until, clock)]
    for start in _other_starts(tree, tried) if len(tree.hosts) <= SMALL else ():
        found.append(exchanged(traffic, tree.levels, start, until, clock))
        if clock() > until:
            break
    return min(found, key=lambda leaves: cost(traffic, tree, leaves))


def _other_starts(tree: Tree, tried: Sequence[Sequence[int]]) -> Iterator[tuple[str, ...]]:
    """Yield Slurm's order, and the orders over randomly permuted leaves: leaves of unequal size fit some better."""
    yield tree.leaf
    dice = Random(0)
    leaves = list(tree.members)
    for _ in range(OTHER_STARTS):
        dice.shuffle(leaves)
        yield _filled(tree, dice.choice(tried), leaves)


class _Exact:
    """Branch and bound: plan nodes take leaves in turn; a branch that already costs more than the best is cut."""

    def __init__(self, traffic: NodeTraffic, tree: Tree) -> None:
        self.levels = tree.levels
        self.before: list[list[tuple[int, float]]] = [[] for _ in tree.hosts]  # earlier neighbours of each node
        for (a, b), num_bytes in traffic.edges.items():
            self.before[b].append((a, num_bytes))
        self.left = {leaf: len(members) for leaf, members in tree.members.items()}
        self.chosen: list[str] = []
        start = _filled(tree, range(len(tree.hosts)), tree.filled)
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
