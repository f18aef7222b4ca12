"""Improve a placement by swapping pairs of plan nodes as long as that lowers its cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from launcher.slurm.traffic import NodeTraffic

MAX_PASSES = 20
LEAST_GAIN = 1e-12  # relative: ignore gains below rounding


def exchanged(
    traffic: NodeTraffic,
    levels: Mapping[tuple[str, str], int],
    start: Sequence[str],
    until: float,
    clock: Callable[[], float],
) -> tuple[str, ...]:
    """Return the leaf of each node after swaps of a node that gains on a peer's leaf with the node there that loses
    least; stop when no swap gains, or at the time `until`.
    """
    state = _Exchange(traffic, levels, list(start))
    nodes = list(range(len(start)))
    for _ in range(MAX_PASSES):
        moved: set[int] = set()
        for count, node in enumerate(nodes):
            if not count % 64 and clock() > until:
                return tuple(state.leaves)
            if other := state.improve(node):
                moved |= {node, other - 1}
        if not moved:
            break
        nodes = sorted(moved | {peer for node in moved for peer, _ in state.peers[node]})
    return tuple(state.leaves)


class _Exchange:
    def __init__(self, traffic: NodeTraffic, levels: Mapping[tuple[str, str], int], leaves: list[str]) -> None:
        self.levels, self.leaves = levels, leaves
        self.peers: list[list[tuple[int, float]]] = [[] for _ in leaves]
        for (a, b), num_bytes in traffic.edges.items():
            self.peers[a].append((b, num_bytes))
            self.peers[b].append((a, num_bytes))
        self.members: dict[str, set[int]] = defaultdict(set)
        for node, leaf in enumerate(leaves):
            self.members[leaf].add(node)

    def at(self, node: int, leaf: str, other: int = -1) -> float:
        """Return the cost of `node` under `leaf`, without its traffic with `other`."""
        levels, leaves = self.levels, self.leaves
        return sum(num_bytes * levels[leaf, leaves[peer]] for peer, num_bytes in self.peers[node] if peer != other)

    def improve(self, node: int) -> int:
        """Swap `node` where that helps most; return 1 + the other node, or 0."""
        here = self.leaves[node]
        wanted = {self.leaves[peer] for peer, _ in self.peers[node]} - {here}
        stays = self.at(node, here) if wanted else 0.0
        best, least = 0, -LEAST_GAIN * stays
        for leaf in sorted(wanted):
            gain = stays - self.at(node, leaf)
            if gain <= 0:
                continue  # its own side must gain: if only the other's does, that one finds this exchange
            for other in sorted(self.members[leaf]):
                change = self._change(node, other)
                if change < least:
                    best, least = 1 + other, change
        if best:
            self._swap(node, best - 1)
        return best

    def _change(self, a: int, b: int) -> float:
        """Return the change of the cost if two nodes swap places; their traffic with each other is unchanged."""
        here, there = self.leaves[a], self.leaves[b]
        before = self.at(a, here, b) + self.at(b, there, a)
        return self.at(a, there, b) + self.at(b, here, a) - before

    def _swap(self, a: int, b: int) -> None:
        here, there = self.leaves[a], self.leaves[b]
        self.members[here] ^= {a, b}
        self.members[there] ^= {a, b}
        self.leaves[a], self.leaves[b] = there, here
