"""A lower bound of the bytes that any placement sends between leaf switches.

A set S of nodes of a grid touches T_f = |projection of S along f| of the lines of each axis f. Loomis and Whitney 1949:
for k axes that share no coordinate the product of their T_f is at least |S|^(k-1). A ring that is partly on a switch
has an edge that leaves it for each part. The minimum over all T_f that this allows is therefore a lower bound of what
a switch's nodes send to others; possibly no placement reaches it.

Stages of a pipeline send unequal amounts, and a switch may hold nodes of several. With T lines along the pipeline it
holds at most T nodes of a stage, so that a node of that stage costs at least its share of a set of T, and its share of
those lines; the sum over all nodes is the bound. Where first and last stage exchange more than neighbours do (a tied
table), a switch where a share x of a stage's nodes has no partner has 1/(2 - x) of its room for that stage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product
from math import ceil, inf, prod

from launcher.slurm.traffic import Lines, NodeTraffic

PIPELINE = frozenset({"pp"})
MAX_AXES = 3  # in the product; lighter ones are ignored
EXACT_STEPS = {0: 64, 1: 32, 2: 16, 3: 8}  # by axes: numbers tried one by one; above, ranges grow by STEP
STEP = 1.3

# By the share of nodes without their partners, from x to x + 0.1: x, and the stage's largest room.
PARTNERS = tuple((x / 10, 1 / (2 - (x + 1) / 10)) for x in range(10))

Range = tuple[int, int]
NodeCost = Callable[
    [int, int], float
]  # (stage, size of the part) → lower bound of the bytes that a node sends to other parts


def least_cut(traffic: NodeTraffic, sizes: Sequence[int]) -> float:
    """Return a lower bound of the bytes between parts of these sizes, for any assignment of nodes; 0: unknown.

    If the parts have room for more nodes than there are, the large ones are filled first.
    """
    num_nodes = prod(traffic.grid.values())
    if num_nodes < 2 or not traffic.lines:
        return 0.0
    filled, left = Counter[int](), num_nodes
    for size in sorted(sizes, reverse=True):
        filled[size] += min(size, left)
        left -= min(size, left)
    spare = sum(sizes) > num_nodes
    closed = tuple(lines for lines in traffic.lines if lines.closed)
    return max(_bound(_Part(traffic, lines), filled, spare=spare) for lines in (traffic.lines, closed))


def _bound(part: _Part, filled: Mapping[int, int], *, spare: bool) -> float:
    """Return the bound for parts by size, with the number of nodes in each size.

    It is unknown which stages are in parts of which size: with the prices of one size, each other size saves at most
    the largest difference (the dual of a transport problem).
    """

    @cache
    def cost(stage: int, size: int) -> float:
        sizes = _ranges(1, min(size, part.num_nodes), exact=16) if spare else [(size, size)]
        return min(part.node_cost(stage, each) for each in sizes)

    kinds = Counter(part.kinds)
    per_kind = part.num_nodes / len(part.kinds)
    found = 0.0
    for reference in filled:
        prices = {stage: cost(stage, reference) for stage in kinds}
        total = sum(count * per_kind * prices[stage] for stage, count in kinds.items())
        saved = (count * min(cost(stage, size) - prices[stage] for stage in kinds) for size, count in filled.items())
        found = max(found, total + sum(saved))
    return max(0.0, found - part.ends)


class _Part:
    """The costs of a part of a grid's nodes. `kinds`: for each stage the first one with equal traffic."""

    def __init__(self, traffic: NodeTraffic, lines: Sequence[Lines]) -> None:
        grid, self.closing = traffic.grid, traffic.closing
        self.num_nodes = prod(grid.values())
        self.stages = grid.get("pp", 1)
        self.along = [each for each in lines if each.axes == PIPELINE]
        self.inside = [each for each in lines if each.axes != PIPELINE]
        self.length = {each.axes: prod(grid[axis] for axis in each.axes) for each in lines}
        sent = [(self._ends(s), *(each.num_bytes[s] for each in self.inside)) for s in range(self.stages)]
        self.kinds = [sent.index(each) for each in sent]
        self.primary = _disjoint(self.inside)
        self.exact = EXACT_STEPS[len(self.primary)]
        # A ring in k parts has k edges between them, an open chain one less.
        self.ends = sum(each.num_bytes[0] for each in self.along if not each.closed) * self.num_nodes / self.stages
        self._kept: dict[tuple[int, int], float] = {}

    def node_cost(self, stage: int, size: Range) -> float:
        """Return the least bytes that a node of a stage sends to others, in a part of this size."""
        low, high = size
        if high >= self.num_nodes:
            return self.ends / high
        if self.stages == 1:
            return self._within(stage, size) / high
        best = inf
        for least, most in _ranges(ceil(low / self.stages), min(high, self.num_nodes // self.stages), exact=self.exact):
            whole = min(high // self.stages, (high - least) / (self.stages - 1))
            chains = sum(each.num_bytes[0] for each in self.along) * max(0.0, least - whole)
            for alone, room in PARTNERS if self._ends(stage) else ((0.0, 1.0),):
                share = self._share(stage, min(most, max(1, int(high * room))))
                best = min(best, share + chains / high + alone * self.closing / 2)
        return best

    def _ends(self, stage: int) -> bool:
        return self.closing > 0 and stage in (0, self.stages - 1)

    def _share(self, stage: int, most: int) -> float:
        """Return the same over the axes of one stage, with at most this many nodes of the stage."""
        if (stage, most) not in self._kept:
            ranges = _ranges(1, most, exact=self.exact)
            self._kept[stage, most] = min(self._within(stage, each) / each[1] for each in ranges)
        return self._kept[stage, most]

    def _within(self, stage: int, size: Range) -> float:
        """Return the least bytes that this many nodes of a stage send to others, over the axes of the stage."""
        low, high = size
        per_stage = self.num_nodes // self.stages
        if high >= per_stage or not self.primary:
            return 0.0
        counts = [
            _ranges(ceil(low / self.length[axes]), min(high, per_stage // self.length[axes]), exact=self.exact)
            for axes in self.primary
        ]
        best = inf
        for others in product(*counts[:-1]):
            last = max(counts[-1][0][0], low ** (len(counts) - 1) / prod(end for _, end in others))
            if last <= counts[-1][-1][1]:
                touched = dict(zip(self.primary, (*(start for start, _ in others), last), strict=True))
                best = min(best, self._cut(stage, touched, size))
        return best

    def _cut(self, stage: int, touched: Mapping[frozenset[str], float], size: Range) -> float:
        low, high = size
        total = 0.0
        for lines in self.inside:
            length = self.length[lines.axes]
            longer = [count for axes, count in touched.items() if lines.axes <= axes]  # each holds several of these
            count = max(1.0, low / length, *longer)
            whole = min(high // length, (high - count) / (length - 1))  # each takes a line's length, others 1
            total += lines.num_bytes[stage] * max(0.0, count - whole)
        return total


def _disjoint(lines: Sequence[Lines]) -> tuple[frozenset[str], ...]:
    """Return the axes of the heaviest lines that share no coordinate."""
    weight = Counter[frozenset[str]]()
    for each in lines:
        weight[each.axes] += round(sum(each.num_bytes))
    chosen: list[frozenset[str]] = []
    for axes, _ in weight.most_common():
        if len(chosen) < MAX_AXES and not any(axes & other for other in chosen):
            chosen.append(axes)
    return tuple(chosen)


def _ranges(first: int, last: int, *, exact: int) -> list[Range]:
    """Return the numbers from first to last, one by one and then by ranges."""
    found = [(number, number) for number in range(first, min(last, exact) + 1)]
    start = max(first, exact + 1)
    while start <= last:
        end = min(last, max(start, int(start * STEP)))
        found.append((start, end))
        start = end + 1
    return found
