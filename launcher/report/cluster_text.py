"""A cluster in 80 columns: its node, its fabric, its links with their numbers, and a plan's ranks on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from textwrap import wrap

from launcher.cluster import Cluster
from launcher.cluster.mesh import Counts
from launcher.layout import Layout, RankGrid
from launcher.report.cluster_links import AxisFacts, LinkFacts
from launcher.report.table import LEFT, RIGHT, draw
from launcher.units import format_seconds

WIDTH = 80
PER_ROW = 8  # GPUs
MOST_NODES, MOST_LEAVES = 4, 4


def cluster_lines(
    cluster: Cluster, links: Sequence[LinkFacts], layout: Layout | None, axes: Sequence[AxisFacts]
) -> list[str]:
    """Everything, line by line."""
    lines = [heading(cluster), "", *_node(cluster, layout)]
    if cluster.node.num_nics:
        lines += ["", *_fabric(cluster)]
    lines += ["", *_links(links)]
    return lines + (["", *_axes(axes)] if axes else [])


def heading(cluster: Cluster) -> str:
    node = cluster.node
    ranks = "CPU ranks" if node.gpu.kind == "cpu" else node.gpu.name
    nodes = f"{cluster.num_nodes} node{'s' if cluster.num_nodes > 1 else ''}"
    network = f", {cluster.fabric}" if node.num_nics else ""
    return f"{cluster.name}: {nodes} of {node.num_gpus} × {ranks}{network}"


def _node(cluster: Cluster, layout: Layout | None) -> Iterator[str]:
    """GPUs in their domains, with the NICs that they are nearest to."""
    node = cluster.node
    grid = RankGrid.of(layout) if layout else None
    word = "rank" if node.gpu.kind == "cpu" else "GPU"
    yield "node" + (f" ({node.cores} cores)" if node.cores else "")
    linked = node.nvlink != "none" and any(len(domain) > 1 for domain in node.domains)
    for number, domain in enumerate(node.domains if linked else [node.gpu_order]):
        if linked and len(domain) > 1:
            title = nvlink_title(cluster)
            yield f"  ┌─ {title} ".ljust(11 * min(len(domain), PER_ROW // 2 * 2) - 4, "─")[: WIDTH - 2]
        for start in range(0, len(domain), PER_ROW):
            row = domain[start : start + PER_ROW]
            yield _cells(f"{word}{gpu}" for gpu in row)
            if node.num_nics:
                yield _cells(f"·{nic_name(cluster, gpu)}" for gpu in row)
            if node.numa_of_gpu:
                yield _cells(f"·NUMA{node.numa_of_gpu[gpu]}" for gpu in row)
            if grid:
                yield _cells(_rank(grid, node.gpu_order.index(gpu)) for gpu in row)
        if node.nvlinks:
            yield from _pairs(node.nvlinks, domain)
        if number + 1 < len(node.domains) and linked:
            yield ""
    if node.num_nics:
        plural = "s" if node.num_nics > 1 else ""
        yield f"  {node.num_nics} NIC{plural} of {node.nic_gbps:g} Gb/s, {_rails(cluster)}"


def _pairs(counts: Counts, domain: Sequence[int]) -> Iterator[str]:
    """The NVLinks of each GPU to others, where not all have as many."""
    for gpu in domain:
        numbers = sorted({count for count in counts[gpu] if count})
        peers = (f"NV{n} to {' '.join(str(b) for b in domain if counts[gpu][b] == n)}" for n in numbers)
        yield f"  GPU{gpu}: {', '.join(peers)}"[:WIDTH]


def _cells(words: Iterable[str]) -> str:
    return "  " + "".join(f"{word:<9}" for word in words).rstrip()


def nic_name(cluster: Cluster, gpu: int) -> str:
    """The NIC of a GPU, or how many it has to itself."""
    node = cluster.node
    several = 1 if node.nic_of_gpu else node.num_nics // node.num_gpus
    return f"{several} NICs" if several > 1 else f"NIC{node.nearest_nic(gpu)}"


def nvlink_title(cluster: Cluster) -> str:
    words = {"nvswitch": "NVSwitch", "direct": "NVLink, each to each", "bridge": "NVLink bridge"}
    if cluster.node.nvlinks:
        return "NVLink, pair by pair"
    nodes = f", one domain of {cluster.nvlink_nodes} nodes" if cluster.nvlink_nodes > 1 else ""
    return words[cluster.node.nvlink] + nodes


def _rank(grid: RankGrid, rank: int) -> str:
    return f"r{rank}" if rank < grid.size else "-"


def _rails(cluster: Cluster) -> str:
    return "one leaf for all of a node" if cluster.rails == 1 else f"{cluster.rails} rails, a leaf to each"


def leaves(cluster: Cluster) -> list[int]:
    """Nodes under each leaf (or set of leaves, one a rail)."""
    if cluster.leaf_sizes:
        ends = (min(end, cluster.num_nodes) for end in (0, *cluster.leaf_ends))
        return [end - start for start, end in pairwise(ends) if end > start]
    per_leaf = cluster.nodes_per_leaf or cluster.num_nodes
    whole, rest = divmod(cluster.num_nodes, per_leaf)
    return [per_leaf] * whole + ([rest] if rest else [])


def core_words(cluster: Cluster) -> str:
    """The third tier, if a job of this size has one."""
    if not 0 < cluster.nodes_per_pod < cluster.num_nodes:
        return ""
    pods = cluster.pod(cluster.num_nodes - 1) + 1
    taper = "not tapered" if cluster.core_oversubscription == 1 else f"tapered {cluster.core_oversubscription:g} : 1"
    return f"core over {pods} pods of {cluster.nodes_per_pod} nodes, {taper}"


def _fabric(cluster: Cluster) -> Iterator[str]:
    counts = leaves(cluster)
    taper = "full" if cluster.oversubscription == 1 else f"1/{cluster.oversubscription:g} of what leaves ask for"
    yield "fabric"
    if core := core_words(cluster):
        yield f"  {core}"
    if len(counts) > 1 or cluster.rails > 1:
        yield f"  spine ({taper})"
    name = f"{cluster.rails} leaves" if cluster.rails > 1 else "leaf"
    first = 0
    for number, count in enumerate(counts[:MOST_LEAVES]):
        shown = [f"node{first + i}" for i in range(min(count, MOST_NODES))]
        more = f" … node{first + count - 1}" if count > MOST_NODES else ""
        tree = "└" if number == len(counts[:MOST_LEAVES]) - 1 and len(counts) <= MOST_LEAVES else "├"
        yield f"  {tree}─ {name} {number}: {' '.join(shown)}{more}"[:WIDTH]
        first += count
    if len(counts) > MOST_LEAVES:
        yield f"  └─ … {len(counts) - MOST_LEAVES} more with {sum(counts[MOST_LEAVES:])} nodes"


def rate(value: float | None) -> str:
    return "unknown" if value is None else f"{value / 1e9:.4g}"


def _links(links: Sequence[LinkFacts]) -> Iterator[str]:
    if not links:
        yield "links: none, every rank is alone"
        return
    rows = [
        [
            link.name,
            link.what,
            rate(link.nameplate),
            rate(link.reached),
            format_seconds(link.latency_s) if link.latency_s else "unknown",
        ]
        for link in links
    ]
    yield from draw({"link": LEFT, "of": LEFT, "GB/s": RIGHT, "reached": RIGHT, "latency": RIGHT}, rows)
    yield "GB/s one way as on the data sheet; reached: bus bandwidth of large collectives"
    for link in links:
        for line in wrap(f"{link.name}: {'; '.join(link.sources)}", WIDTH - 2, subsequent_indent="    "):
            yield f"  {line}"


def _axes(axes: Sequence[AxisFacts]) -> list[str]:
    rows = [
        [
            f"{facts.axis}{facts.degree}",
            f"{facts.groups} × {facts.degree}",
            _members(facts.first),
            facts.link,
            rate(facts.reached),
        ]
        for facts in axes
    ]
    columns = dict.fromkeys(("axis", "groups", "the first: ranks", "crosses"), LEFT) | {"GB/s": RIGHT}
    return [*draw(columns, rows), "GB/s: bus bandwidth of a large all-reduce over one group, all groups at once"]


def _members(ranks: Sequence[int]) -> str:
    text = " ".join(map(str, ranks[:6]))
    return f"{text} … {ranks[-1]}" if len(ranks) > 6 else text
