"""The shape that NVLinks give a node: any-to-any domains, what joins them, and links that seem to be broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from launcher.cluster.readers_nccl import NcclTopology
from launcher.cluster.readers_topo import MAX_LINKS_PER_GPU, UNKNOWN, Topology

ALL_LINKS = 12  # of an A100, the fewest of a GPU that comes on boards with NVSwitch
MOST_BROKEN = 0.25  # of the GPUs: with more, it is another shape

Counts = Sequence[Sequence[int]]  # links between two GPUs


@dataclass(frozen=True)
class NvlinkShape:
    """`domains`: sets of GPUs with NVLink between any two; None for a mesh that joins some only in part, or unknown.

    `kind`: nvswitch, direct, bridge, none or unknown. `defects`: what the node lacks of that shape. `mesh`: the links
    between every two GPUs, where each is wired to some others without a switch.
    """

    domains: tuple[tuple[int, ...], ...] | None
    kind: str
    defects: tuple[str, ...] = ()
    mesh: tuple[tuple[int, ...], ...] | None = None


def counts_of(topology: Topology) -> Counts:
    """Links between the GPUs of `nvidia-smi topo -m`."""
    gpus = range(len(topology.gpus))
    return [[topology.nvlinks(a, b) if a != b else 0 for b in gpus] for a in gpus]


def counts_of_file(topology: NcclTopology) -> Counts | None:
    """Links between the GPUs of an NCCL topology: all of a GPU's to each other one through NVSwitch; None where the
    file says none.
    """
    if not topology.nvlinks:
        return None
    index = {gpu.busid: i for i, gpu in enumerate(topology.gpus)}
    counts = [[0] * len(index) for _ in index]
    switched = Counter(link.source for link in topology.nvlinks if link.target not in index)
    for link in topology.nvlinks:
        if link.target in index:
            counts[index[link.source]][index[link.target]] += link.count
    for a, b in combinations([index[busid] for busid in switched], 2):
        counts[a][b] = counts[b][a] = ALL_LINKS
    return counts


def nvlink_shape(counts: Counts, *, product: str = "") -> NvlinkShape:
    """The shape of a node; `product`: its GPUs' name, which distinguishes a bridge from a pair behind NVSwitch."""
    linked = [[count > 0 for count in row] for row in counts]
    kind = _kind(counts, product)
    whole = _whole(linked)
    mesh = tuple(map(tuple, counts)) if whole is None and kind == "direct" and _is_mutual(counts) else None
    return NvlinkShape(whole, kind, (*_missing(linked, whole), *_thin(counts, whole)), mesh)


def _is_mutual(counts: Counts) -> bool:
    """Whether both GPUs of every pair show the same links."""
    return all(counts[a][b] == counts[b][a] for a, b in combinations(range(len(counts)), 2))


def _kind(counts: Counts, product: str) -> str:
    """Through a switch every peer sees all of a GPU's links, so that they add up to more than a GPU has; wired directly
    they are shared out. One pair looks the same either way: there the product says more.
    """
    peers = max((sum(count > 0 for count in row) for row in counts), default=0)
    if peers == 0:
        return "none"
    if max(sum(row) for row in counts) > MAX_LINKS_PER_GPU:
        return "nvswitch"
    if peers > 1:
        return "direct"
    if "pcie" in product.lower() or "NVL" in product:
        return "bridge"
    if "sxm" in product.lower() or "HBM3" in product:  # H100 SXM is called H100 80GB HBM3
        return "nvswitch" if max(map(max, counts)) >= ALL_LINKS else "direct"
    return UNKNOWN


def _whole(linked: Sequence[Sequence[bool]]) -> tuple[tuple[int, ...], ...] | None:
    """The domains if a few broken links are mended."""
    size = len(linked)
    exact = _domains(linked)
    if exact is not None and not _has_outcast(exact, size):
        return exact
    if exact is not None or _nearly_complete(linked):
        return (tuple(range(size)),)
    return None


def _domains(linked: Sequence[Sequence[bool]]) -> tuple[tuple[int, ...], ...] | None:
    size = len(linked)
    peers = [{b for b in range(size) if a == b or linked[a][b] or linked[b][a]} for a in range(size)]
    if any(peers[a] != peers[b] for a in range(size) for b in peers[a]):
        return None
    return tuple(dict.fromkeys(tuple(sorted(group)) for group in peers))


def _has_outcast(domains: Sequence[Sequence[int]], size: int) -> bool:
    """Return whether one or a few GPUs are outside a domain of all the others."""
    alone = [domain for domain in domains if len(domain) == 1]
    return 0 < len(alone) <= MOST_BROKEN * size and len(domains) == len(alone) + 1


def _nearly_complete(linked: Sequence[Sequence[bool]]) -> bool:
    """Whether all missing links are those of a few GPUs."""
    size = len(linked)
    missing = [(a, b) for a, b in combinations(range(size), 2) if not (linked[a][b] or linked[b][a])]
    touched = Counter(gpu for pair in missing for gpu in pair)
    few = {gpu for gpu, _ in touched.most_common(int(MOST_BROKEN * size))}
    return bool(missing) and size > 2 and all(set(pair) & few for pair in missing) and len(missing) < size


def _missing(linked: Sequence[Sequence[bool]], whole: Sequence[Sequence[int]] | None) -> list[str]:
    """Pairs of a domain without NVLink, by GPU where one has none at all."""
    pairs = [pair for domain in whole or () for pair in combinations(domain, 2) if not linked[pair[0]][pair[1]]]
    alone = [gpu for gpu in range(len(linked)) if not any(linked[gpu]) and any(gpu in pair for pair in pairs)]
    found = [f"GPU{gpu} has no NVLink to any other GPU" for gpu in alone]
    return found + [f"GPU{a} and GPU{b} have no NVLink" for a, b in pairs if a not in alone and b not in alone]


def _thin(counts: Counts, whole: Sequence[Sequence[int]] | None) -> list[str]:
    """Pairs with fewer links than most pairs of the node have."""
    found = Counter(counts[a][b] for domain in whole or () for a, b in combinations(domain, 2) if counts[a][b])
    if len(found) < 2:
        return []
    usual, times = found.most_common(1)[0]
    if times <= found.total() / 2:
        return []  # a mesh with different links by design
    return [
        f"GPU{a} and GPU{b} have {counts[a][b]} NVLinks where others have {usual}"
        for domain in whole or ()
        for a, b in combinations(domain, 2)
        if 0 < counts[a][b] < usual
    ]
