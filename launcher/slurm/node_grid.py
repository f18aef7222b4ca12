"""The groups of ranks of messages, and the grid that the nodes of a plan form.

dp is split where expert groups and shard groups end, cp where a shard group ends inside it. A part of an axis is named
by the axis and the distance of its members along it: dp1 up to the first split, then dp4, ….
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from launcher.layout import Layout, RankGrid

Parts = Mapping[str, tuple[int, int]]  # part of an axis → stride and degree over ranks, fastest first


def groups(layout: Layout, stage: int, axis: str) -> Iterator[tuple[int, ...]]:
    """Yield the groups of a message's axis among the ranks of one stage, in rank order; "": single ranks."""
    parts = _parts(layout, _cuts(layout, axis))
    spans = spanned(layout, axis, parts)
    members = _offsets([parts[name] for name in spans])
    for first in _offsets([parts[name] for name in parts if name != "pp" and name not in spans]):
        start = first + stage * parts["pp"][0]
        yield tuple(start + member for member in members)


def spanned(layout: Layout, axis: str, parts: Iterable[str]) -> tuple[str, ...]:
    """Return the parts that a group of a message's axis spans."""
    dp, cp = ([part for part in parts if part.startswith(name)] for name in ("dp", "cp"))
    across, within = layout.shard_span
    experts = [part for part in dp if int(part[2:]) < layout.ep]
    sharded = [part for part in dp if int(part[2:]) < across] if across > 1 else []
    sharded += [part for part in cp if int(part[2:]) < within]
    replicas = [*dp, *cp]
    spans = {
        "": [],
        "cp": cp,
        "dp": replicas,
        "ep": experts,
        "edp": [part for part in replicas if part not in experts],
        "sdp": sharded,
        "rdp": [part for part in replicas if part not in sharded],
    }
    return tuple(spans.get(axis, [axis]))


def all_parts(layout: Layout) -> Parts:
    """Return the axes of ranks, split wherever groups of any kind end; empty if the splits do not nest."""
    dp, cp = (sorted({*a, *b}) for a, b in zip(_cuts(layout, "ep"), _cuts(layout, "sdp"), strict=True))
    if any(high % low for cuts in (dp, cp) for low, high in pairwise(cuts)):
        return {}
    return _parts(layout, (dp, cp))


def node_grid(layout: Layout, *, gpus_per_node: int) -> dict[str, int]:
    """Map parts of axes to degrees over nodes, fastest first; empty if the nodes do not form a grid."""
    found = {}
    for part, (stride, degree) in all_parts(layout).items():
        span = stride * degree
        if (gpus_per_node % span and span % gpus_per_node) or (stride % gpus_per_node and gpus_per_node % stride):
            return {}
        found[part] = span // max(stride, gpus_per_node) if span > gpus_per_node else 1
    return found


def _cuts(layout: Layout, axis: str) -> tuple[list[int], list[int]]:
    """Return where dp and cp are split for the groups of one axis."""
    dp, cp = {1, layout.dp}, {1, layout.cp}
    if axis in ("ep", "edp"):
        dp.add(layout.ep)
    elif axis in ("sdp", "rdp"):
        across, within = layout.shard_span
        dp.add(across)
        cp.add(within)
    return sorted(dp), sorted(cp)


def _parts(layout: Layout, cuts: tuple[list[int], list[int]]) -> Parts:
    grid, found = RankGrid.of(layout), {}
    for axis in grid.axes:
        stride = grid.strides[axis]
        if axis in ("dp", "cp"):
            for low, high in pairwise(cuts[axis == "cp"] if len(cuts[axis == "cp"]) > 1 else (1, 1)):
                found[f"{axis}{low}"] = stride * low, high // low
        else:
            found[axis] = stride, layout.degree(axis)
    return found


def _offsets(axes: list[tuple[int, int]]) -> list[int]:
    """Return every sum of one multiple below `degree` of each stride, ascending."""
    found = [0]
    for stride, degree in axes:
        found = [base + stride * index for index in range(degree) for base in found]
    return sorted(found)
