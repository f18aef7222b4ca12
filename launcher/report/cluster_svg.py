"""A cluster as a picture: a node with its links and NICs, the fabric over the nodes, the links, a plan's ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from html import escape
from itertools import combinations

from launcher.cluster import Cluster
from launcher.cluster.mesh import Counts, links_of_each
from launcher.layout import Layout, RankGrid
from launcher.report.cluster_links import AxisFacts, LinkFacts
from launcher.report.cluster_text import core_words, heading, leaves, nvlink_title, rate
from launcher.units import format_seconds

WIDTH, MARGIN = 1000, 30
GPU_W, GPU_H, GAP = 96, 46, 14
NIC_H, DOMAIN_H, MESH_H = 28, 26, 110
PER_ROW = 8
MOST_LEAVES, MOST_NODES = 6, 6
LINE_H = 18
LETTER = 8.0  # width of one, at most
WIDEST_LEAF = 460
INK, DIM, FACE, EDGE = "#1f2933", "#616e7c", "#f5f7fa", "#9aa5b1"
LINK_COLOURS = {
    "NVLink": "#3f9142", "PCIe": "#b7791f", "memory": "#b7791f", "NICs": "#2b6cb0", "spine": "#805ad5",
    "core": "#c53030",
}  # fmt: skip
# Of tensor-parallel groups, which stay in a node: neighbours differ.
GROUP_COLOURS = ("#d7ecd9", "#d6e6f7", "#fbe8c8", "#ead9f5", "#f9d7d7", "#d3f0ee", "#eee8c9", "#e1e4ea")
STYLE = (
    "text{font:13px ui-sans-serif,system-ui,'DejaVu Sans',sans-serif;fill:" + INK + "}"
    ".t{font-size:17px;font-weight:600}.h{font-weight:600}.d{fill:" + DIM + ";font-size:11.5px}"
)


def cluster_svg(cluster: Cluster, links: Sequence[LinkFacts], layout: Layout | None, axes: Sequence[AxisFacts]) -> str:
    """The whole picture as one SVG document."""
    body: list[str] = [_text(MARGIN, 36, heading(cluster), kind="t")]
    y = 62
    for part in (_node(cluster, layout, y),):
        y = _take(body, part)
    if cluster.node.num_nics:
        y = _take(body, _fabric(cluster, y + 34))
    y = _take(body, _links(links, y + 40))
    if axes:
        y = _take(body, _axes(axes, y + 30))
    height = y + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img"><title>{escape(heading(cluster))}</title><style>{STYLE}</style>'
    )
    return f'{head}<rect width="{WIDTH}" height="{height}" fill="white"/>{"".join(body)}</svg>\n'


def _take(body: list[str], part: Iterator[tuple[int, str]]) -> int:
    """Add the pieces of a part; returns how far down it reaches."""
    lowest = 0
    for bottom, piece in part:
        body.append(piece)
        lowest = max(lowest, bottom)
    return lowest


def _node(cluster: Cluster, layout: Layout | None, y: int) -> Iterator[tuple[int, str]]:
    """The GPUs of one node, domain by domain, in rows, with the NICs under them."""
    node = cluster.node
    cores = f", {node.cores} cores" if node.cores else ""
    yield y + 14, _text(MARGIN, y + 14, f"a node{cores}", kind="h")
    grid = RankGrid.of(layout) if layout else None
    y += 26
    firsts, drawn = {domain[0] for domain in node.domains}, set[int]()
    for row in rows(cluster):
        linked = node.nvlink != "none" and any(len(domain) > 1 for domain in row)
        top = y + (MESH_H if node.nvlinks else DOMAIN_H + 12) if linked else y
        places: dict[int, float] = {}
        x = float(MARGIN)
        for domain in row:
            if linked and not node.nvlinks:
                yield from _domain(cluster, len(domain), x, y, again=domain[0] not in firsts)
            for gpu in domain:
                places[gpu] = x
                x += GPU_W + GAP
            x += GAP if linked else 0
        if node.nvlinks:
            yield from _mesh(cluster, node.nvlinks, places, top)
        yield from _gpus(cluster, grid, places, top, linked=linked and not node.nvlinks, drawn=drawn)
        drawn |= {node.nearest_nic(gpu) for gpu in places} if node.num_nics else set()
        y = top + gpu_height(cluster) + (NIC_H + 34 if node.num_nics else 16)
    yield y - 16, ""


def gpu_height(cluster: Cluster) -> int:
    """Of a GPU's box, with a line for its NUMA node where that is known."""
    return GPU_H + (16 if cluster.node.numa_of_gpu else 0)


def rows(cluster: Cluster) -> list[list[tuple[int, ...]]]:
    """Domains, or their parts, in rows of at most PER_ROW GPUs."""
    found: list[list[tuple[int, ...]]] = [[]]
    for domain in cluster.node.domains:
        for start in range(0, len(domain), PER_ROW):
            part = domain[start : start + PER_ROW]
            if sum(map(len, found[-1])) + len(part) > PER_ROW:
                found.append([])
            found[-1].append(part)
    return found


def _domain(cluster: Cluster, size: int, x: float, y: int, *, again: bool) -> Iterator[tuple[int, str]]:
    """The link of a domain over its GPUs; `again`: over those that the row above had no room for."""
    node = cluster.node
    name = nvlink_title(cluster)
    per_gpu = f", {node.gpu.nvlink_bytes_per_s / 1e9:g} GB/s a GPU" if node.gpu.nvlink_bytes_per_s else ""
    span = size * (GPU_W + GAP) - GAP
    title = f"the same {name}" if again else f"{name}{per_gpu}"
    short = title if len(title) * LETTER < span else name if len(name) * LETTER < span else name.partition(",")[0]
    yield y + DOMAIN_H, _box(x, y, span, DOMAIN_H, fill="#e3f1e4", edge=LINK_COLOURS["NVLink"])
    yield y + DOMAIN_H, _text(x + span / 2, y + 18, short, middle=True)


def _mesh(cluster: Cluster, counts: Counts, places: Mapping[int, float], y: int) -> Iterator[tuple[int, str]]:
    """An arc for every pair that NVLink joins, as wide as it has links."""
    node, colour = cluster.node, LINK_COLOURS["NVLink"]
    each = node.gpu.nvlink_bytes_per_s / max(1, links_of_each(counts)) / 1e9
    rate = f" of {each:g} GB/s" if each else ""
    numbers = sorted({count for row in counts for count in row if count})
    title = f"{nvlink_title(cluster)}: an arc is {' or '.join(map(str, numbers))} link{'s' * (numbers != [1])}{rate}"
    yield y, _text(MARGIN, y - MESH_H + 14, f"{title}, wider for more", kind="d")
    wired = [abs(places[a] - places[b]) for a, b in combinations(places, 2) if counts[a][b]]
    longest = max(wired, default=1.0)
    for a, b in combinations(places, 2):
        if count := counts[a][b]:
            x, to_x = places[a] + GPU_W / 2, places[b] + GPU_W / 2
            height = 24 + (2 * MESH_H - 80) * abs(to_x - x) / longest  # of the control point, twice the arc's
            path = f"M{x:g} {y:g}Q{(x + to_x) / 2:g} {y - height:g} {to_x:g} {y:g}"
            yield y, f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{1.6 * count:g}" opacity="0.75"/>'


def _gpus(
    cluster: Cluster, grid: RankGrid | None, places: Mapping[int, float], y: int, *, linked: bool, drawn: Set[int]
) -> Iterator[tuple[int, str]]:
    """One row of them with their NICs; `drawn`: NICs that a row above has."""
    node = cluster.node
    word, height = "rank" if node.gpu.kind == "cpu" else "slice " if node.is_mig else "GPU", gpu_height(cluster)
    nics: dict[int, list[float]] = {}
    for gpu, x in places.items():
        rank = node.gpu_order.index(gpu)
        where = _place(grid, rank)
        if linked:
            yield y, _line(x + GPU_W / 2, y - 12, x + GPU_W / 2, y, LINK_COLOURS["NVLink"], 3)
        yield y + height, _box(x, y, GPU_W, height, fill=_colour(grid, rank), edge=EDGE)
        yield y + GPU_H, _text(x + GPU_W / 2, y + (19 if where else 28), f"{word}{gpu}", kind="h", middle=True)
        yield y + GPU_H, _text(x + GPU_W / 2, y + 36, where, kind="d", middle=True)
        if node.numa_of_gpu:
            yield (
                y + height,
                _text(x + GPU_W / 2, y + height - 7, f"NUMA {node.numa_of_gpu[gpu]}", kind="d", middle=True),
            )
        if node.num_nics:
            nics.setdefault(node.nearest_nic(gpu), []).append(x + GPU_W / 2)
    for nic, above in nics.items():
        yield from _nic(cluster, nic, above, y + height, again=nic in drawn)


def _nic(cluster: Cluster, nic: int, above: Sequence[float], y: float, *, again: bool) -> Iterator[tuple[int, str]]:
    """A NIC, or those that fall to the GPUs above it, under their middle."""
    node = cluster.node
    middle, top = sum(above) / len(above), y + 18
    several = 1 if node.nic_of_gpu else node.num_nics // node.num_gpus
    name = f"{several} NICs" if several > 1 else f"NIC{nic}"
    for x in above:
        yield int(top), _line(x, y, middle, top, LINK_COLOURS["NICs"], 1.5)
    label = f"{name} again" if again else f"{name} {node.nic_gbps:g}G"
    wide = 84 if len(label) < 10 else GPU_W
    yield int(top + NIC_H), _box(middle - wide / 2, top, wide, NIC_H, fill="#e1ecf7", edge=LINK_COLOURS["NICs"])
    yield int(top + NIC_H), _text(middle, top + 18, label, middle=True)


def _place(grid: RankGrid | None, rank: int) -> str:
    if grid is None or rank >= grid.size:
        return ""
    where = " ".join(f"{axis}{index}" for axis, index in grid.coordinate(rank).items() if grid.degree(axis) > 1)
    return f"r{rank} {where}"[:16]


def _colour(grid: RankGrid | None, rank: int) -> str:
    if grid is None or rank >= grid.size:
        return FACE
    first = grid.group("tp", rank)[0]
    groups = [group[0] for group in grid.groups("tp")]
    return GROUP_COLOURS[groups.index(first) % len(GROUP_COLOURS)]


def _fabric(cluster: Cluster, y: int) -> Iterator[tuple[int, str]]:
    """Spine, leaves and the nodes under them; what is too many to draw is counted."""
    counts = leaves(cluster)
    shown = counts[:MOST_LEAVES]
    span = WIDTH - 2 * MARGIN
    each = min(WIDEST_LEAF, span / (len(shown) + (len(counts) > MOST_LEAVES)))
    width = each * len(shown) if len(counts) <= MOST_LEAVES else span
    own = each - (24 if cluster.rails > 1 else 10)
    yield y, _text(MARGIN, y, f"the fabric: {cluster.fabric}", kind="h")
    has_spine = len(counts) > 1 or cluster.rails > 1
    top = y + 16
    if core := core_words(cluster):
        yield top + 28, _box(MARGIN, top, width - 10, 28, fill="#fde8e8", edge=LINK_COLOURS["core"])
        yield top + 28, _text(MARGIN + width / 2 - 5, top + 19, core, middle=True)
        yield top + 42, _line(MARGIN + width / 2, top + 28, MARGIN + width / 2, top + 42, LINK_COLOURS["core"], 3)
        top += 42
    if has_spine:
        taper = "not tapered" if cluster.oversubscription == 1 else f"tapered {cluster.oversubscription:g} : 1"
        yield top + 28, _box(MARGIN, top, width - 10, 28, fill="#efe7fb", edge=LINK_COLOURS["spine"])
        yield top + 28, _text(MARGIN + width / 2 - 5, top + 19, f"spine, {taper}", middle=True)
    leaf_top = top + (58 if has_spine else 0)
    first = 0
    for i, count in enumerate(shown):
        x = MARGIN + i * each
        if has_spine:
            yield leaf_top, _line(x + own / 2, top + 28, x + own / 2, leaf_top, LINK_COLOURS["spine"], 3)
        yield from _leaf(
            cluster, x, each - (24 if cluster.rails > 1 else 10), leaf_top, number=i, first=first, count=count
        )
        first += count
    if len(counts) > MOST_LEAVES:
        x = MARGIN + len(shown) * each
        rest = f"… {len(counts) - MOST_LEAVES} more, {sum(counts[MOST_LEAVES:])} nodes"
        yield leaf_top + 28, _text(x + 4, leaf_top + 19, rest, kind="d")


def _leaf(
    cluster: Cluster, x: float, width: float, y: int, *, number: int, first: int, count: int
) -> Iterator[tuple[int, str]]:
    name = f"{cluster.rails} leaves, one a rail" if cluster.rails > 1 else f"leaf {number}"
    name = name if len(name) * LETTER < width else f"{cluster.rails} leaves" if cluster.rails > 1 else f"leaf {number}"
    lines = min(cluster.rails, 4) if cluster.rails > 1 else 1
    for i in reversed(range(lines)):  # a stack of leaves, one for each rail
        yield y + 28, _box(x + 3 * i, y - 3 * i, width, 28, fill="#e1ecf7", edge=LINK_COLOURS["NICs"])
    yield y + 28, _text(x + width / 2, y + 19, name, middle=True)
    drawn = min(count, MOST_NODES, max(1, int(width // 52)))
    each = width / drawn
    for i in range(drawn):
        last = i == drawn - 1 and count > drawn
        at = x + i * each + each / 2
        yield y + 90, _line(at, y + 28, at, y + 54, LINK_COLOURS["NICs"], 1.5)
        yield y + 90, _box(at - each / 2 + 3, y + 54, each - 6, 32, fill=FACE, edge=EDGE)
        yield y + 90, _text(at, y + 75, f"…{first + count - 1}" if last else f"n{first + i}", middle=True, kind="d")


def _links(links: Sequence[LinkFacts], y: int) -> Iterator[tuple[int, str]]:
    yield y, _text(MARGIN, y, "what the planner assumes", kind="h")
    columns = (MARGIN, MARGIN + 90, MARGIN + 330, MARGIN + 440, MARGIN + 560)
    names = ("link", "of", "GB/s one way", "reached", "latency")
    for x, name in zip(columns, names, strict=True):
        yield y + 20, _text(x + (14 if x == MARGIN else 0), y + 20, name, kind="d")
    y += 20
    for link in links:
        y += LINE_H + 4
        latency = format_seconds(link.latency_s) if link.latency_s else "unknown"
        cells = (link.name, link.what, rate(link.nameplate), rate(link.reached), latency)
        colour = LINK_COLOURS.get(link.name, EDGE)
        yield y, f'<rect x="{MARGIN}" y="{y - 10}" width="9" height="9" fill="{colour}"/>'
        for x, cell in zip(columns, cells, strict=True):
            yield y, _text(x + (14 if x == MARGIN else 0), y, cell)
        for source in link.sources:
            y += LINE_H - 2
            yield y, _text(MARGIN + 104, y, source, kind="d")


def _axes(axes: Sequence[AxisFacts], y: int) -> Iterator[tuple[int, str]]:
    yield y, _text(MARGIN, y, "the plan's groups", kind="h")
    for facts in axes:
        y += LINE_H
        ranks = ", ".join(map(str, facts.first[:8])) + (f", … {facts.first[-1]}" if len(facts.first) > 8 else "")
        text = (
            f"{facts.axis} {facts.degree}: {facts.groups} groups, the first of ranks {ranks}; across {facts.link}, "
            f"{rate(facts.reached)} GB/s each"
        )
        yield y, _text(MARGIN + 14, y, text)


def _text(x: float, y: float, words: str, *, kind: str = "", middle: bool = False) -> str:
    cls = f' class="{kind}"' if kind else ""
    anchor = ' text-anchor="middle"' if middle else ""
    return f'<text x="{x:g}" y="{y:g}"{cls}{anchor}>{escape(words)}</text>' if words else ""


def _box(x: float, y: float, width: float, height: float, *, fill: str, edge: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{fill}" stroke="{edge}" '
        'stroke-width="1.2"/>'
    )


def _line(x: float, y: float, to_x: float, to_y: float, colour: str, width: float) -> str:
    return f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{colour}" stroke-width="{width:g}"/>'
