"""The fabric between nodes: number of nodes per kind and per leaf, rails and taper."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.cluster.discover.node import Fact, Nics
from launcher.cluster.discover.sources import Evidence
from launcher.cluster.hostlist import compress_hostlist
from launcher.cluster.machine import natural
from launcher.cluster.nvlink import NvlinkShape, nvlink_shape
from launcher.cluster.readers_slurm import GresGpus, SlurmNodes

MEMORY_TOLERANCE = 0.1  # nodes of one kind report their memory with small differences
_GUID = re.compile(r"(?:0x)?[0-9a-f]{12,16}", re.IGNORECASE)
SHOWN_LEAVES = 12
MOST_LISTED = 200  # leaves whose sizes a cluster file lists


@dataclass(frozen=True)
class FabricView:
    """The nodes alike (`names`, where Slurm knows them) and the switches over them; None where no source says it."""

    names: tuple[str, ...] = ()
    num_nodes: Fact[int] | None = None
    num_gpus: Fact[int] | None = None
    gpu_type: str | None = None
    nodes_per_leaf: Fact[int] | None = None
    leaf_sizes: Fact[tuple[int, ...]] | None = None  # where they are unequal, and hold every node
    rails: Fact[int] | None = None
    oversubscription: Fact[float] | None = None
    nics: Fact[Nics] | None = None
    cores: Fact[int] | None = None
    memory_mib: Fact[int] | None = None
    shape: Fact[NvlinkShape] | None = None
    slices: Fact[Mapping[str, int]] | None = None
    nodes_per_pod: Fact[int] | None = None
    notes: tuple[str, ...] = ()


def fabric_view(evidence: Evidence, host: str) -> FabricView:
    """The fabric of the nodes that are like `host`, or of the largest kind with GPUs."""
    notes: list[str] = []
    group = _alike(evidence.slurm_nodes, host) if evidence.slurm_nodes else []
    names = tuple(dict.fromkeys(name for record in group for name in record.names))
    if away := sorted({record.state for record in group if re.match(r"down|drain|fail", record.state)}):
        notes.append(f"some of the {len(names)} nodes are {', '.join(away)}; they are counted")
    source = evidence.sources.get("slurm nodes", "")
    gres = _main_gres(evidence, notes)
    gpus = _gpus(evidence, group, gres, notes)
    leaves, leaf_source = _leaves(evidence, names, notes)
    return FabricView(
        names=names,
        num_nodes=_count(evidence, names, leaves, leaf_source) or _listed_nodes(evidence, gres),
        num_gpus=gpus,
        gpu_type=next((record.gpu_type for record in group if record.gpu_type), gres.type if gres else None),
        nodes_per_leaf=_nodes_per_leaf(leaves, leaf_source),
        leaf_sizes=_leaf_sizes(leaves, leaf_source, names, notes),
        rails=_rails(evidence),
        oversubscription=_oversubscription(evidence),
        nics=_nics(evidence),
        cores=_least([_cores(record) for record in group], source),
        memory_mib=_least([record.memory_mib for record in group], source),
        shape=Fact(nvlink_shape(_plain(gres.links)), evidence.sources["gres"]) if gres and gres.links else None,
        slices=_slices(evidence, group),
        nodes_per_pod=_nodes_per_pod(evidence, notes),
        notes=tuple(notes),
    )


def _alike(records: Sequence[SlurmNodes], host: str) -> list[SlurmNodes]:
    """The records of this host's kind; on a host that Slurm does not know, those of the largest GPU kind.

    Nodes are of one kind with the same GPUs and CPUs, and memory that differs little.
    """

    def kind(record: SlurmNodes) -> tuple[object, ...]:
        return record.num_gpus, record.gpu_type, record.cpus, tuple(sorted(record.slices.items()))

    sizes = Counter[tuple[object, ...]]()
    for record in records:
        sizes[kind(record)] += len(record.names)
    here = [record for record in records if host in record.names]
    chosen = (
        here[0]
        if here
        else max(records, key=lambda record: (bool(record.num_gpus or record.slices), sizes[kind(record)]))
    )
    memory = chosen.memory_mib
    return [
        record
        for record in records
        if kind(record) == kind(chosen) and abs(record.memory_mib - memory) <= MEMORY_TOLERANCE * max(memory, 1)
    ]


def _main_gres(evidence: Evidence, notes: list[str]) -> GresGpus | None:
    """The whole GPUs of gres.conf that most nodes have; the others are noted."""
    whole = [gres for gres in evidence.gres if gres.profile is None]
    if not whole:
        return None
    chosen = max(whole, key=lambda gres: (len(gres.nodes), gres.count))
    for other in whole:
        if other is not chosen and other.nodes != chosen.nodes:
            notes.append(
                f"{evidence.sources['gres']} lists other GPUs too: {_shown(other)}; {_shown(chosen)} are taken"
            )
    return chosen


def _shown(gres: GresGpus) -> str:
    where = f" on {_few(gres.nodes)}" if gres.nodes else ""
    return f"{gres.count} × {gres.type or 'gpu'}{where}"


def _listed_nodes(evidence: Evidence, gres: GresGpus | None) -> Fact[int] | None:
    return Fact(len(gres.nodes), evidence.sources["gres"]) if gres and gres.nodes else None


def _plain(links: Sequence[Sequence[int]]) -> list[list[int]]:
    """Counts of NVLinks without the mark of a GPU itself."""
    return [[max(0, count) for count in row] for row in links]


def _slices(evidence: Evidence, group: Sequence[SlurmNodes]) -> Fact[Mapping[str, int]] | None:
    """The MIG slices of a node, by profile."""
    if found := next((record.slices for record in group if record.slices), None):
        return Fact(found, evidence.sources["slurm nodes"])
    cut = {gres.profile: gres.count for gres in evidence.gres if gres.profile}
    return Fact(cut, evidence.sources["gres"]) if cut else None


def _nodes_per_pod(evidence: Evidence, notes: list[str]) -> Fact[int] | None:
    """Nodes below a switch of the second tier, where there is a third and all have as many."""
    sizes = set(evidence.slurm_topology.pods.values()) if evidence.slurm_topology else set()
    if len(sizes) != 1:
        return None
    notes.append(
        "a third tier of switches joins pods: how far it is tapered is unknown (cluster.core_oversubscription)"
    )
    return Fact(sizes.pop(), evidence.sources["slurm topology"])


def _gpus(evidence: Evidence, group: Sequence[SlurmNodes], gres: GresGpus | None, notes: list[str]) -> Fact[int] | None:
    """GPUs of a node as Slurm counts them; gres.conf counts where the node records do not."""
    records = [Fact(record.num_gpus, evidence.sources["slurm nodes"]) for record in group[:1] if record.num_gpus]
    listed = [Fact(gres.count, evidence.sources["gres"])] if gres else []
    if records and listed and records[0].value not in {fact.value for fact in listed}:
        notes.append(
            f"sources disagree: {records[0].source} shows {records[0].value} GPUs a node, "
            f"{listed[0].source} {listed[0].value}"
        )
    return next(iter([*records, *listed]), None)


def _cores(record: SlurmNodes) -> int:
    known = record.sockets * record.cores_per_socket
    return known or record.cpus // max(1, record.threads_per_core)


def _least(values: Sequence[int], source: str) -> Fact[int] | None:
    known = [value for value in values if value]
    return Fact(min(known), source) if known else None


def _leaves(evidence: Evidence, names: Sequence[str], notes: list[str]) -> tuple[dict[str, tuple[str, ...]], str]:
    """Leaf → our nodes on it, by Slurm's topology, else by the InfiniBand fabric."""
    topology, fabric = evidence.slurm_topology, evidence.infiniband
    if topology is None:
        return (fabric.leaf_hosts(), evidence.sources["infiniband"]) if fabric else ({}, "")
    source = evidence.sources["slurm topology"]
    notes += topology.notes[:SHOWN_LEAVES]
    leaves: Mapping[str, tuple[str, ...]] = topology.leaves
    if all(_GUID.fullmatch(node) for nodes in leaves.values() for node in nodes) and any(leaves.values()):
        if fabric is None:
            notes.append(f"{source} names port GUIDs, not nodes: give `ibnetdiscover` too, which maps them to nodes")
            return {}, ""
        guids = {guid.removeprefix("0x").lower(): host for guid, host in fabric.host_of_guid.items()}
        leaves = {
            leaf: tuple(dict.fromkeys(guids[g] for node in nodes if (g := node.removeprefix("0x").lower()) in guids))
            for leaf, nodes in leaves.items()
        }
        source = f"{source} with {evidence.sources['infiniband']}"
    _strangers(leaves, names, source, notes)
    ours = set(names)
    found = {leaf: tuple(node for node in nodes if not ours or node in ours) for leaf, nodes in leaves.items()}
    return {leaf: nodes for leaf, nodes in found.items() if nodes}, source


def _strangers(leaves: Mapping[str, Sequence[str]], names: Sequence[str], source: str, notes: list[str]) -> None:
    """Nodes that are in one of Slurm's lists and not in the other, where both are of the same nodes."""
    placed = {node for nodes in leaves.values() for node in nodes}
    if not names or not placed & set(names):
        return
    if homeless := [name for name in names if name not in placed]:
        notes.append(f"{source} names no leaf for {_few(homeless)}")
    if unknown := sorted(placed - set(names)):
        notes.append(f"{source} names {_few(unknown)}, which are none of the {len(names)} nodes")


def _few(names: Sequence[str]) -> str:
    shown = compress_hostlist(names)
    return shown if len(shown) <= 80 else f"{len(names)} nodes ({shown[:60]}…)"


def _count(
    evidence: Evidence, names: Sequence[str], leaves: Mapping[str, Sequence[str]], source: str
) -> Fact[int] | None:
    if names:
        return Fact(len(names), evidence.sources["slurm nodes"])
    nodes = {node for nodes in leaves.values() for node in nodes}
    return Fact(len(nodes), source) if nodes else None


def _nodes_per_leaf(leaves: Mapping[str, Sequence[str]], source: str) -> Fact[int] | None:
    """Nodes of a leaf; where leaves differ, of those that hold most of the nodes."""
    held = Counter[int]()
    for nodes in leaves.values():
        held[len(nodes)] += len(nodes)
    return Fact(max(held, key=lambda size: (held[size], -size)), source) if held else None


def _leaf_sizes(
    leaves: Mapping[str, Sequence[str]], source: str, names: Sequence[str], notes: list[str]
) -> Fact[tuple[int, ...]] | None:
    """Nodes of each leaf where they differ, in the order in which they are named; None where all are alike but for a
    smaller last one, or where nodes are on no leaf or on several.
    """
    sizes = tuple(len(nodes) for nodes in leaves.values())
    if len(set(sizes[:-1])) < 2 and sizes[-1:] <= sizes[:1]:
        return None
    placed = {node for nodes in leaves.values() for node in nodes}
    shown = ", ".join(map(str, sorted(sizes, reverse=True)[:SHOWN_LEAVES])) + (", …" if len(sizes) > 12 else "")
    if len(sizes) <= MOST_LISTED and sum(sizes) == len(placed) == len(names or placed):
        notes.append(f"leaves hold unequal numbers of nodes ({shown}): jobs fill them in the order of leaf_sizes")
        return Fact(sizes, source)
    usual = _nodes_per_leaf(leaves, source)
    notes.append(
        f"leaves hold unequal numbers of nodes ({shown}): {usual.value if usual else 0} is taken, where most of the "
        "nodes are; cluster.leaf_sizes can name each"
    )
    return None


def _rails(evidence: Evidence) -> Fact[int] | None:
    fabric = evidence.infiniband
    return Fact(fabric.rails, evidence.sources["infiniband"]) if fabric and fabric.rails > 1 else None


def _nics(evidence: Evidence) -> Fact[Nics] | None:
    """The ports that most nodes have in the InfiniBand fabric, at the rate that most ports have."""
    fabric = evidence.infiniband
    if fabric is None or not fabric.hosts:
        return None
    by_host = Counter(port.host for port in fabric.ports if port.host)
    number = Counter(by_host.values()).most_common(1)[0][0]
    gbps = Counter(port.gbps for port in fabric.ports).most_common(1)[0][0]
    usual = next(host for host, count in by_host.items() if count == number)
    names = tuple(sorted({port.device for port in fabric.ports if port.host == usual}, key=natural))
    return Fact(Nics(names, gbps, "infiniband"), evidence.sources["infiniband"])


def _oversubscription(evidence: Evidence) -> Fact[float] | None:
    ratio = evidence.infiniband.oversubscription if evidence.infiniband else None
    return Fact(max(1.0, round(ratio, 2)), evidence.sources["infiniband"]) if ratio else None
