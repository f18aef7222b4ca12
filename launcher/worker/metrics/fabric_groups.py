"""Groups that take a fabric apart: each rail by itself, and pairs of leaves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from launcher.layout import Placement

Groups = tuple[tuple[int, ...], ...]
RAIL, LEAF_PAIR = "rail", "leaf pair"
MOST_ROUNDS = 7  # of pairs: every pair of eight leaves


def rail_groups(placement: Placement, world: int) -> Groups:
    """The ranks of each rail, over all nodes; none where there is one rail or one node."""
    if placement.cluster.rails == 1 or placement.num_nodes == 1:
        return ()
    found = _by(placement.rail, world)
    return tuple(found[rail] for rail in sorted(found)) if len(found) > 1 else ()


def leaf_pair_rounds(placement: Placement, world: int) -> Iterator[Groups]:
    """Rounds of pairs of leaves, each leaf once in a round (the circle method), with as many ranks of either."""
    leaves = _by(lambda rank: placement.cluster.leaf(placement.slot(rank).node), world)
    ranks = [leaves[leaf] for leaf in sorted(leaves)]
    size = len(ranks) + len(ranks) % 2
    for turn in range(min(MOST_ROUNDS, size - 1) if len(ranks) > 1 else 0):
        circle = [0, *((turn + i) % (size - 1) + 1 for i in range(size - 1))]
        pairs = [sorted((circle[i], circle[size - 1 - i])) for i in range(size // 2)]
        yield tuple(_joined(ranks[a], ranks[b]) for a, b in pairs if b < len(ranks))


def _joined(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    each = min(len(one), len(other))
    return (*one[:each], *other[:each])


def _by(place: Callable[[int], int], world: int) -> Mapping[int, tuple[int, ...]]:
    found: dict[int, list[int]] = defaultdict(list)
    for rank in range(world):
        found[place(rank)].append(rank)
    return {key: tuple(ranks) for key, ranks in found.items()}


def slow_parts(placement: Placement, slow: Sequence[tuple[str, Sequence[int]]]) -> str:
    """The rail, or the leaf that is common to all slow pairs, of a verdict's slow groups; "" where there is none."""
    rails = sorted({placement.rail(ranks[0]) for axis, ranks in slow if axis == RAIL})
    pairs = [
        {placement.cluster.leaf(placement.slot(rank).node) for rank in ranks}
        for axis, ranks in slow
        if axis == LEAF_PAIR
    ]
    words = [f"rail {', '.join(map(str, rails))} is slower than the others"] if rails else []
    if pairs and (common := sorted(set.intersection(*pairs))):
        what = f"leaf {common[0]} is" if len(common) == 1 else f"between leaves {common[0]} and {common[1]} it is"
        words.append(f"{what} slower than the others")
    return "; ".join(words)
