"""A cluster file: each key with the source of its value, and at its head what could not be found out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

from launcher.cluster.discover.fabric import FabricView
from launcher.cluster.discover.gpus import CARDS, Card, slice_entry
from launcher.cluster.discover.node import Fact, Nics, NodeView
from launcher.cluster.machine import RDMA_FABRICS
from launcher.cluster.node_lists import are_devices, is_interface
from launcher.cluster.nvlink import NvlinkShape
from launcher.cluster.readers_topo import UNKNOWN
from launcher.errors import InputError
from launcher.text import printable
from launcher.units import GIB, MIB

MISSING = "???"
LONGEST_COMMENT = 400
WHOLE = ""  # the profile of a GPU that is not cut


@dataclass(frozen=True)
class Line:
    """One `key: value  # source` of the file."""

    key: str
    value: str
    source: str = ""


class Cut(NamedTuple):
    """A node with MIG: the entry of its GPUs, its lines and notes, and lines of the GPU."""

    entry: str | None
    lines: tuple[Line, ...]
    notes: list[str]
    gpu_lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file ready to be written, and what could not be found out about it. `where`: it was looked."""

    name: str
    gpu: str
    cluster: tuple[Line, ...]
    node: tuple[Line, ...]
    gpu_lines: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()
    where: str = ""

    def with_notes(self, notes: Iterable[str]) -> ClusterFile:
        return replace(self, notes=(*self.notes, *notes))

    @property
    def text(self) -> str:
        heading = [
            f"# Found by `launcher discover` {self.where}; {MISSING} is what could not be found out: fill it in."
        ]
        heading += [f"# {printable(note, longest=400)}" for note in self.notes]
        defaults = ["defaults:", f"  - /gpu@node.gpu: {self.gpu}", "  - _self_", f"name: {self.name}"]
        body = [*map(_text, self.cluster), "node:", *(f"  {_text(line)}" for line in self.node)]
        body += ["  gpu:", *(f"    {_text(line)}" for line in self.gpu_lines)] if self.gpu_lines else []
        return "\n".join([*heading, *defaults, *body]) + "\n"


def _text(line: Line) -> str:
    return f"{line.key}: {line.value}" + (
        f" # {printable(line.source, longest=LONGEST_COMMENT)}" if line.source else ""
    )


def cpu_file(name: str, node: NodeView, fabric: FabricView, notes: Sequence[str]) -> ClusterFile:
    """A machine without GPUs as CPU ranks, one to a usable core."""
    machine = node.machine.value if node.machine else None
    ranks = max(1, machine.cores if machine else 1)
    memory = machine.memory_bytes if machine else 0
    lines = (Line("num_gpus", str(ranks), "CPU ranks: one to a usable core"), Line("domain_size", "auto"))
    share = Line("memory_gib", f"{memory / ranks / GIB:.2f}", "of /proc/meminfo, shared by the ranks")
    return ClusterFile(
        name,
        "cpu",
        _cluster_lines(node, fabric),
        (*lines, *_host_lines(node, fabric), *_nic_lines(node)),
        (share,) if memory else (),
        (*notes, *node.notes, *fabric.notes, *_seen_by_slurm(0, fabric, here=True)),
    )


def gpu_file(name: str, node: NodeView, fabric: FabricView, *, here: bool, num_nodes: int = 1) -> ClusterFile:
    """A cluster of GPUs, whole or cut. `here`: this process is on the node; `num_nodes`: that were seen."""
    node = node if node.nics and node.nics.value.fabric else replace(node, nics=fabric.nics or node.nics)
    node = node if node.shape else replace(node, shape=fabric.shape)
    notes = [*node.notes, *node.problems, *fabric.notes]
    card = node.card.value if node.card else Card(fabric.gpu_type or "", None)
    if mixed := [problem for problem in node.problems if " GPUs are " in problem]:
        raise InputError(f"this node mixes GPUs ({'; '.join(mixed)}): one file describes one kind")
    count = node.num_gpus or fabric.num_gpus
    is_cut = node.slices is not None
    if node.slices:
        gpu, lines, cut_notes, gpu_lines = _cut(card, node, node.slices)
    elif fabric.slices and _heavier(fabric.slices.value, count.value if count else 0):
        gpu, lines, cut_notes, gpu_lines = _cut_by_slurm(card, fabric.slices, count)
        is_cut = True
    else:
        gpu, cut_notes, gpu_lines = card.entry, list[str](), ()
        lines = (Line("num_gpus", str(count.value), count.source) if count else Line("num_gpus", MISSING),)
        lines += _link_lines(count.value if count else 0, node.shape)
        lines += _affinity_lines(node, count.value if count else 0)
        cut_notes += (
            [f"there are also {_shown(fabric.slices.value)}, which need a file of their own"] if fabric.slices else []
        )
    if gpu is None and not is_cut and card.name:
        notes.append(_unknown_card(card.name))
    elif gpu is None and not is_cut:
        notes.append("no source says what the GPUs are: name an entry of configs/gpu in the first lines")
    if any(line.value == MISSING and line.key in ("domains", "nvlink") for line in lines):
        notes.append(f"NVLink is not plain here, or not known: fill in {MISSING} yourself")
    seen = count.value if count else 0
    return ClusterFile(
        name,
        gpu or MISSING,
        _cluster_lines(node, fabric, num_nodes),
        (*lines, *_nic_lines(node), *_host_lines(node, fabric)),
        gpu_lines,
        notes=(*notes, *cut_notes, *_seen_by_slurm(seen, fabric, here=here)),
    )


def _unknown_card(name: str) -> str:
    """Slurm's types are short: several entries may be meant."""
    likely = sorted(entry for entry in CARDS if entry.startswith(f"{name.lower()}_"))
    if likely:
        return f"the GPUs are called {name}: name one of {', '.join(likely)} in the first lines"
    return f"no entry of configs/gpu describes {name}: write one, and name it in the first lines"


def _affinity_lines(node: NodeView, count: int) -> tuple[Line, ...]:
    """The NIC of each GPU, where it is not that of the order, and its NUMA node, where there are several."""
    lines = []
    nics = len(node.nics.value.names) if node.nics else 0
    if node.nic_of_gpu and len(node.nic_of_gpu.value) == count:
        found = list(node.nic_of_gpu.value)
        if found != [gpu * nics // count for gpu in range(count)]:
            lines.append(Line("nic_of_gpu", json.dumps(found), node.nic_of_gpu.source))
    if node.numa and len(node.numa.value) == count and len(set(node.numa.value)) > 1:
        lines.append(Line("numa_of_gpu", json.dumps(list(node.numa.value)), node.numa.source))
    return tuple(lines)


def _heavier(slices: Mapping[str, int], whole: int) -> bool:
    """Whether slices are more of a node than its whole GPUs."""
    return sum(_sevenths(profile) * count for profile, count in slices.items()) > 7 * whole


def _shown(slices: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {profile}" for profile, count in slices.items())


def _cut_by_slurm(card: Card, slices: Fact[Mapping[str, int]], whole: Fact[int] | None) -> Cut:
    """Entry, lines and notes of a node whose slices Slurm counts: how many a GPU has it does not say."""
    kind = max(slices.value, key=lambda profile: (_sevenths(profile) * slices.value[profile], profile))
    entry, sliced = slice_entry(card, kind)
    notes = [] if entry else [f"no entry of configs/gpu is named for a {kind} slice here: name one in the first lines"]
    others = {profile: count for profile, count in slices.value.items() if profile != kind}
    others |= {"whole GPUs": whole.value} if whole and whole.value else {}
    if others:
        notes.append(f"there are also {_shown(others)}, which need files of their own")
    lines = (
        Line("num_gpus", str(slices.value[kind]), f"slices of {kind}, {slices.source}"),
        Line("domain_size", "1", "slices have no peer-to-peer"),
        Line("nvlink", "none"),
        Line("slices_per_gpu", MISSING),
    )
    return Cut(entry, lines, notes, _gpu_lines(sliced))


def _seen_by_slurm(seen: int, fabric: FabricView, *, here: bool) -> list[str]:
    """Note if a node was seen with fewer GPUs than Slurm's nodes have."""
    if fabric.num_gpus is None or seen >= fabric.num_gpus.value:
        return []
    there, source = fabric.num_gpus.value, fabric.num_gpus.source
    if not here:
        return [f"sources disagree: {source} shows nodes with {there} GPUs, the others {seen}"]
    return [
        f"{source} shows nodes with {there} GPUs ({fabric.gpu_type or 'no type'}), and this process sees {seen}: "
        f"run it as srun -N1 --exclusive --gres=gpu:{there} launcher discover"
    ]


def _cluster_lines(node: NodeView, fabric: FabricView, num_nodes: int = 1) -> tuple[Line, ...]:
    count = fabric.num_nodes or Fact(num_nodes, "seen" if num_nodes > 1 else "")
    lines = [Line("num_nodes", str(count.value), count.source)]
    if node.nics and node.nics.value.fabric:
        lines.append(Line("fabric", node.nics.value.fabric, node.nics.source))
    elif node.nics:
        lines.append(Line("fabric", MISSING))
    lines.append(Line("scheduler", "slurm" if fabric.names else "local"))
    if sizes := fabric.leaf_sizes:
        lines.append(Line("leaf_sizes", json.dumps(list(sizes.value)), sizes.source))
    found = {
        "nodes_per_leaf": None if sizes else fabric.nodes_per_leaf, "rails": _rails(node, fabric),
        "oversubscription": fabric.oversubscription, "nodes_per_pod": _whole_pods(fabric),
    }  # fmt: skip
    lines += [Line(key, f"{fact.value:g}", fact.source) for key, fact in found.items() if fact is not None]
    return tuple(lines)


def _whole_pods(fabric: FabricView) -> Fact[int] | None:
    """Pods, where they hold whole leaves."""
    leaf, pod = fabric.nodes_per_leaf, fabric.nodes_per_pod
    if pod and fabric.leaf_sizes:
        return pod if pod.value in accumulate(fabric.leaf_sizes.value) else None
    return pod if pod and leaf and pod.value % leaf.value == 0 else None


def _rails(node: NodeView, fabric: FabricView) -> Fact[int] | None:
    """Rails, where they divide the NICs as they must."""
    nics = len(node.nics.value.names) if node.nics else 0
    return fabric.rails if fabric.rails and nics and nics % fabric.rails.value == 0 else None


def _link_lines(count: int, shape: Fact[NvlinkShape] | None) -> tuple[Line, ...]:
    """The NVLink domains among the GPUs of a node."""
    if count == 1:
        return (Line("domain_size", "1"), Line("nvlink", "none"))
    if shape is not None and shape.value.mesh and len(shape.value.mesh) == count:
        links = json.dumps([list(row) for row in shape.value.mesh])
        return (Line("nvlink", "direct", shape.source), Line("nvlinks", links, f"of every pair, {shape.source}"))
    if shape is None or shape.value.domains is None or sum(map(len, shape.value.domains)) != count:
        return (Line("domains", MISSING), Line("nvlink", MISSING))
    kind = MISSING if shape.value.kind == UNKNOWN else shape.value.kind
    domains, source = shape.value.domains, shape.source
    size = len(domains[0])
    equal = tuple(tuple(range(i, i + size)) for i in range(0, size * len(domains), size))
    where = Line("domain_size", str(size), source) if domains == equal else Line("domains", json.dumps(domains), source)
    return (where, Line("nvlink", kind, source))


def _nic_lines(node: NodeView) -> tuple[Line, ...]:
    if node.nics is None:
        return ()
    nics, source = node.nics.value, node.nics.source
    rate = Line("nic_gbps", f"{nics.gbps:g}", f"present rate, {source}") if nics.gbps else Line("nic_gbps", MISSING)
    return (
        Line("num_nics", str(len(nics.names)), f"{', '.join(nics.names)}, {source}"),
        rate,
        *_name_lines(nics, source),
    )


def _name_lines(nics: Nics, source: str) -> tuple[Line, ...]:
    """What NCCL and gloo need to be given: the RDMA devices, or the one interface where there is no RDMA."""
    if not nics.same_names:
        return ()
    if len(nics.names) == 1 and (nics.fabric == "ethernet" or is_interface(nics.names[0])):
        return (Line("interface", json.dumps(nics.names[0]), source),)
    if nics.fabric in ("", *RDMA_FABRICS) and are_devices(nics.names):
        return (Line("nic_names", json.dumps(list(nics.names)), source),)
    return ()


def _host_lines(node: NodeView, fabric: FabricView) -> tuple[Line, ...]:
    lines = []
    if node.machine:
        machine, source = node.machine.value, node.machine.source
        lines.append(Line("cores", str(machine.cores), f"usable, {source}"))
        if machine.memory_bytes:
            lines.append(Line("host_memory_gib", f"{machine.memory_bytes / GIB:.1f}", source))
        return tuple(lines)
    if fabric.cores:
        lines.append(Line("cores", str(fabric.cores.value), fabric.cores.source))
    if fabric.memory_mib:
        memory = fabric.memory_mib
        lines.append(Line("host_memory_gib", f"{memory.value * MIB / GIB:.1f}", f"the least, {memory.source}"))
    return tuple(lines)


def _cut(card: Card, node: NodeView, slices: Fact[tuple[tuple[str, ...], ...]]) -> Cut:
    """Entry, lines and notes of a node with MIG: of the kind, whole GPUs or one profile, that most of the GPUs are."""
    weight, number = Counter[str](), Counter[str]()
    for cut in slices.value:
        for profile in cut or (WHOLE,):
            number[profile] += 1
            weight[profile] += _sevenths(profile)
    kind = max(weight, key=lambda profile: (weight[profile], profile == WHOLE))
    count = number[kind]
    notes = []
    if others := [profile for profile in number if profile != kind]:
        shown = "; ".join(f"{number[profile]} {profile or 'whole GPUs'}" for profile in others)
        notes.append(
            f"the GPUs are cut differently: this file describes the {count} {kind or 'whole GPUs'}; there are also "
            f"{shown}, which need files of their own"
        )
    if kind == WHOLE:
        whole = Line("num_gpus", str(count), f"those that are not cut, {slices.source}")
        return Cut(card.entry, (whole, *_link_lines(count, _of_whole(node, slices.value))), notes)
    per_gpu = max(cut.count(kind) for cut in slices.value)
    entry, sliced = slice_entry(card, kind)
    if entry is None:
        name = f" of {card.name}" if card.name else ""
        notes.append(f"no entry of configs/gpu describes a {kind} slice{name}: write one")
    elif sliced:
        notes.append(f"the rates of a {kind} slice of {card.name} are its share of those of the whole GPU (mig_slice)")
    lines = (
        Line("num_gpus", str(count), f"slices of {kind}, {slices.source}"),
        Line("domain_size", "1", "slices have no peer-to-peer"),
        Line("nvlink", "none"),
        Line("slices_per_gpu", str(per_gpu), slices.source),
    )
    return Cut(entry, lines, notes, _gpu_lines(sliced))


def _gpu_lines(profile: str | None) -> tuple[Line, ...]:
    return (Line("mig_slice", profile, "cut from the whole GPU"),) if profile else ()


def _sevenths(profile: str) -> int:
    """The number of compute slices; a GPU has seven."""
    match = re.match(r"([0-9]{1,2})g\.", profile)
    return int(match[1]) if match else 7


def _of_whole(node: NodeView, slices: Sequence[Sequence[str]]) -> Fact[NvlinkShape] | None:
    """The NVLink domains of the GPUs that are not cut, numbered among themselves."""
    if node.shape is None or node.shape.value.domains is None:
        return None
    whole = [gpu for gpu, cut in enumerate(slices) if not cut]
    place = {gpu: index for index, gpu in enumerate(whole)}
    domains = tuple(tuple(place[gpu] for gpu in domain if gpu in place) for domain in node.shape.value.domains)
    shape = replace(node.shape.value, domains=tuple(domain for domain in domains if domain))
    return replace(node.shape, value=shape)
