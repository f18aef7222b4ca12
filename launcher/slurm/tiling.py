"""Orders in which plan nodes fill the leaves: along every order of the axes, and by tiles of the node grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush, nsmallest
from itertools import permutations, product
from math import prod
from statistics import median

from launcher.slurm.traffic import NodeTraffic

BEST_TILES = 4  # per height, for each tile below
MOST_ORDERS = 12  # by tiles, to try
MOST_TILES = 20_000  # shapes to examine

Tile = tuple[int, ...]
Loops = list[tuple[int, int]]  # (stride, count), the fastest first


def orders(traffic: NodeTraffic, sizes: Sequence[Sequence[int]], num_hosts: int) -> Iterator[Sequence[int]]:
    """Yield orders of the plan's nodes, the most promising tiles first; `sizes`: hosts under each switch by height,
    leaves first.
    """
    axes = {axis: degree for axis, degree in traffic.grid.items() if degree > 1}
    if len(axes) > 1:
        for tiles in _nested(traffic, axes, [round(median(each)) for each in sizes]):
            yield _rotated(_expanded(_tile_loops(axes, tiles)), traffic)
        for order in permutations(range(len(axes))):
            yield _expanded(_axis_loops(axes, order))
    yield range(num_hosts)
    if len(axes) != 1:
        yield _grown(traffic, num_hosts)


def _expanded(loops: Loops) -> list[int]:
    """Return the nodes that nested loops visit."""
    found = [0]
    for stride, count in loops:
        found = [base + stride * index for index in range(count) for base in found]
    return found


def _strides(axes: Mapping[str, int]) -> list[int]:
    degrees = list(axes.values())
    return [prod(degrees[:axis]) for axis in range(len(degrees))]


def _axis_loops(axes: Mapping[str, int], order: Sequence[int]) -> Loops:
    strides, degrees = _strides(axes), list(axes.values())
    return [(strides[axis], degrees[axis]) for axis in order]


def _tile_loops(axes: Mapping[str, int], tiles: Sequence[Tile]) -> Loops:
    """Return loops through the smallest tile, then through the small ones in a larger one …"""
    strides, found = _strides(axes), []
    inner: Tile = (1,) * len(axes)
    for outer in (*tiles, tuple(axes.values())):
        found += [(stride * step, size // step) for stride, step, size in zip(strides, inner, outer, strict=True)]
        inner = outer
    return found


def _rotated(order: list[int], traffic: NodeTraffic) -> list[int]:
    """Move the last stage before the first if they exchange more than neighbours do."""
    if not traffic.closing:
        return order
    stages = traffic.grid["pp"]
    stride = prod(degree for axis, degree in _before(traffic.grid, "pp"))
    return [node + (stride * (stages - 1) if node // stride % stages == 0 else -stride) for node in order]


def _before(grid: Mapping[str, int], axis: str) -> list[tuple[str, int]]:
    names = list(grid)
    return [(name, grid[name]) for name in names[: names.index(axis)]]


def _nested(traffic: NodeTraffic, axes: Mapping[str, int], sizes: Sequence[int]) -> list[tuple[Tile, ...]]:
    """Return the most promising tiles per height, each made of whole tiles of the height below."""
    found: list[tuple[float, tuple[Tile, ...]]] = [(0.0, ())]
    for size in sizes:
        if size >= prod(axes.values()):
            break
        longer = []
        for spent, below in found:
            unit = below[-1] if below else (1,) * len(axes)
            longer += [(spent + cut, (*below, tile)) for cut, tile in _tiles(traffic, axes, unit, size)]
        found = longer or found
    return [tiles for _, tiles in nsmallest(MOST_ORDERS, found) if tiles]


def _tiles(traffic: NodeTraffic, axes: Mapping[str, int], unit: Tile, size: int) -> list[tuple[float, Tile]]:
    """Return the tiles of up to `size` nodes with the least traffic across, with the bytes per node."""
    choices = []
    for degree, step in zip(axes.values(), unit, strict=True):
        whole = [step * k for k in range(1, degree // step + 1) if degree % (step * k) == 0]
        choices.append([length for length in whole if length <= size] or [step])
    if prod(map(len, choices)) > MOST_TILES:
        return []
    fitting = [tile for tile in product(*choices) if prod(tile) <= size]
    found = nsmallest(BEST_TILES, ((_cut(traffic, axes, tile), -prod(tile), tile) for tile in fitting))
    return [(cut, tile) for cut, _, tile in found]


def _cut(traffic: NodeTraffic, axes: Mapping[str, int], tile: Tile) -> float:
    """Return the bytes across a tile's border, per node in it."""
    lengths = dict(zip(axes, tile, strict=True))
    total = traffic.closing / traffic.grid.get("pp", 1) if lengths.get("pp", 1) == 1 else 0.0
    for lines in traffic.lines:
        run = 1
        for axis in (axis for axis in axes if axis in lines.axes):
            run *= lengths[axis]
            if lengths[axis] < axes[axis]:
                total += sum(lines.num_bytes) / len(lines.num_bytes) / run
                break
    return total


def _grown(traffic: NodeTraffic, num_hosts: int) -> list[int]:
    """Return the nodes, each time the one that exchanges most with those before it."""
    peers: list[list[tuple[int, float]]] = [[] for _ in range(num_hosts)]
    for (a, b), num_bytes in traffic.edges.items():
        peers[a].append((b, num_bytes))
        peers[b].append((a, num_bytes))
    pull = [0.0] * num_hosts
    taken, found = [False] * num_hosts, []
    heap = [(0.0, node) for node in range(num_hosts)]
    while heap:
        _, node = heappop(heap)
        if taken[node]:
            continue
        taken[node] = True
        found.append(node)
        for peer, num_bytes in peers[node]:
            if not taken[peer]:
                pull[peer] += num_bytes
                heappush(heap, (-pull[peer], peer))
    return found
