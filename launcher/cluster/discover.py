"""Looks at this node, and at Slurm where there is one, and writes down the cluster as configs/cluster/<name>.yaml.

What is not found stays `???`: composing such a file names the key to fill in. Nothing is guessed.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.cluster import commands
from launcher.cluster.machine import Machine, read_machine
from launcher.cluster.readers_slurm import SlurmNodes, read_slurm_nodes, read_slurm_topology
from launcher.cluster.readers_smi import ListedGpu, read_list, uniform_profile
from launcher.cluster.readers_topo import UNKNOWN, Topology, nvlink_domains, nvlink_kind, read_topo
from launcher.errors import InputError
from launcher.text import printable
from launcher.units import GIB, MIB

# Product names as nvidia-smi prints them (older drivers without "NVIDIA ") → entry of configs/gpu.
GPU_ENTRIES = {
    "A100-SXM4-80GB": "a100_sxm_80g",
    "A100-SXM-80GB": "a100_sxm_80g",
    "A100-SXM4-40GB": "a100_sxm_40g",
    "A100 80GB PCIe": "a100_pcie_80g",
    "A100-PCIE-40GB": "a100_pcie_40g",
    "A100-PCIe-40GB": "a100_pcie_40g",
    "H100 80GB HBM3": "h100_sxm",
    "L40S": "l40s",
    "A10": "a10",
}
MIG_ENTRIES = {("a100_sxm_80g", "1g.10gb"): "a100_mig_1g", ("a100_sxm_80g", "3g.40gb"): "a100_mig_3g"}
_MISSING = "???"
LONGEST_COMMENT = 500  # characters; what a command printed may be in it


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file ready to be written, and what could not be found out about it."""

    name: str
    text: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """One `key: value  # source` of the file, or a heading when the value is empty."""

    key: str
    value: str = ""
    source: str = ""


@dataclass(frozen=True)
class _Found:
    """What has been found out so far."""

    gpu: str
    node: tuple[Line, ...]
    cluster: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()
    gpu_lines: tuple[Line, ...] = field(default=())


def discover(
    name: str | None = None, *, run: commands.Runner = commands.run, machine: Machine | None = None
) -> ClusterFile:
    """The cluster that this node belongs to; raises InputError where the GPUs cannot be described by one file.

    name: of the cluster file; the host name by default. run and machine: where texts and facts come from.
    """
    machine = machine or read_machine()
    host = socket.gethostname().partition(".")[0]
    name = _checked_name(name) if name is not None else re.sub(r"[^a-z0-9_]+", "_", host.lower()).strip("_")
    found = _node(machine, run)
    found = _slurm(found, host, run)
    return ClusterFile(name, _yaml(name, host, found), found.notes)


def write_cluster_file(file: ClusterFile, folder: Path, *, force: bool = False) -> Path:
    """Write `folder`/<name>.yaml, complete or not at all; raises InputError where it exists and `force` is not set."""
    path = folder / f"{file.name}.yaml"
    temporary = folder / f".{file.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(file.text, encoding="utf-8")
        if force:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # unlike rename, fails where the file exists
            temporary.unlink()
    except FileExistsError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path} exists: give another name, or force=true to overwrite it") from error
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path} ({error.strerror}): run it in a folder of yours") from error
    return path


def _checked_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        return name
    raise InputError(f"{name!r} cannot name a cluster file: use letters, digits, _ and -")


def _node(machine: Machine, run: commands.Runner) -> _Found:
    """This node, from its GPUs or, without any, as CPU ranks."""
    listed = run(("nvidia-smi", "-L"))
    if listed.text is None and listed.installed and "No devices" not in listed.problem:
        raise InputError(
            f"nvidia-smi fails here, so that the GPUs are unknown ({listed.problem}): repair the driver first"
        )
    if listed.text is None:
        return _cpu_node(machine, f"no GPUs found ({listed.problem}): described as CPU ranks, one to a core")
    gpus = read_list(listed.text)
    host = _host_lines(machine)
    if any(gpu.slices for gpu in gpus):
        return _mig_node(gpus, host)
    topo = run(("nvidia-smi", "topo", "-m"))
    topology = None if topo.text is None else read_topo(topo.text)
    notes = topology.notes if topology else (f"NVLink is unknown: {topo.problem}",)
    found = _gpu_entry(gpus[0].name, notes)
    if len({gpu.name for gpu in gpus}) > 1:
        raise InputError(f"this node mixes {', '.join(sorted({g.name for g in gpus}))}: one file describes one kind")
    linked = _link_lines(gpus, topology)
    nics, fabric, nic_notes = _nic_lines(machine, topology)
    if any(line.value == _MISSING for line in linked):
        found = replace(found, notes=(*found.notes, "NVLink is not plain here: fill in what stands as ??? yourself"))
    return replace(found, node=(*linked, *nics, *host), cluster=fabric, notes=(*found.notes, *nic_notes))


def _cpu_node(machine: Machine, note: str) -> _Found:
    ranks = max(1, machine.cores)
    share = Line("memory_gib", f"{machine.memory_bytes / ranks / GIB:.2f}", "of /proc/meminfo, shared by the ranks")
    node = (
        Line("num_gpus", str(ranks), "CPU ranks: one to a usable core"),
        Line("domain_size", str(ranks)),
        *_host_lines(machine),
    )
    nics, fabric, notes = _nic_lines(machine, None)
    return _Found("cpu", (*node, *nics), fabric, (note, *notes), gpu_lines=(share,) if machine.memory_bytes else ())


def _mig_node(gpus: Sequence[ListedGpu], host: Sequence[Line]) -> _Found:
    cut = uniform_profile(gpus)
    if cut is None:
        cuts = "; ".join(f"GPU {g.index}: {', '.join(s.profile for s in g.slices) or 'whole'}" for g in gpus)
        raise InputError(f"the GPUs are cut differently ({cuts}): one cluster file describes one kind of slice")
    profile, count = cut
    whole = GPU_ENTRIES.get(_product(gpus[0].name), "")
    entry = MIG_ENTRIES.get((whole, profile))
    notes = () if entry else (f"no entry of configs/gpu describes a {profile} slice of {gpus[0].name}: write one",)
    node = (
        Line("num_gpus", str(len(gpus) * count), f"slices: {len(gpus)} GPUs × {count}, nvidia-smi -L"),
        Line("domain_size", "1", "slices have no peer-to-peer"),
        Line("nvlink", "none"),
        Line("slices_per_gpu", str(count), "nvidia-smi -L"),
    )
    return _Found(entry or _MISSING, (*node, *host), notes=notes)


def _gpu_entry(product: str, notes: tuple[str, ...]) -> _Found:
    entry = GPU_ENTRIES.get(_product(product))
    if entry is None:
        notes = (*notes, f"no entry of configs/gpu describes {product}: write one, and name it in the first lines")
    return _Found(entry or _MISSING, (), notes=notes)


def _product(name: str) -> str:
    return name.removeprefix("NVIDIA ").strip()


def _link_lines(gpus: Sequence[ListedGpu], topology: Topology | None) -> tuple[Line, ...]:
    """GPUs of the node and the NVLink domains among them."""
    count = Line("num_gpus", str(len(gpus)), "nvidia-smi -L")
    if len(gpus) == 1:
        return (count, Line("domain_size", "1"), Line("nvlink", "none"))
    if topology is None or len(topology.gpus) != len(gpus):
        return (count, Line("domains", _MISSING), Line("nvlink", _MISSING))
    domains = nvlink_domains(topology)
    kind = nvlink_kind(topology)
    if kind == UNKNOWN and "pcie" in gpus[0].name.lower():
        kind = "bridge"
    shape = Line("domains", _MISSING) if domains is None else _domain_line(domains)
    return (count, shape, Line("nvlink", _MISSING if kind == UNKNOWN else kind, "nvidia-smi topo -m"))


def _domain_line(domains: tuple[tuple[int, ...], ...]) -> Line:
    size = len(domains[0])
    equal = tuple(tuple(range(i, i + size)) for i in range(0, size * len(domains), size))
    if domains == equal:
        return Line("domain_size", str(size), "nvidia-smi topo -m")
    return Line("domains", json.dumps(domains), "nvidia-smi topo -m")


def _nic_lines(
    machine: Machine, topology: Topology | None
) -> tuple[tuple[Line, ...], tuple[Line, ...], tuple[str, ...]]:
    """(lines of the node, of the cluster, notes) about the NICs for traffic between nodes.

    They are those that `topo -m` shows behind one PCIe switch with a GPU, else all that are up; without any RDMA the
    Ethernet interfaces.
    """
    up = [nic for nic in machine.nics if nic.active]
    down = [nic.name for nic in machine.nics if not nic.active]
    notes = [f"{', '.join(down)} are down: not counted"] if down else []
    near = _behind_a_gpu_switch(topology)
    if near and (far := [nic.name for nic in up if nic.name not in near]):
        notes.append(f"{', '.join(far)} share no PCIe switch with a GPU: taken as storage or service adapters")
        up = [nic for nic in up if nic.name in near]
    if not up:
        up = [nic for nic in machine.ethernet if nic.active and nic.gbps]
        told = ", ".join(nic.name for nic in up)
        unknown = "no Ethernet interface tells its speed: set cluster.node.num_nics and nic_gbps for several nodes"
        notes.append(f"no RDMA adapters found; {f'traffic between nodes takes {told}' if told else unknown}")
    if not up:
        return (), (), tuple(notes)
    slowest = min(nic.gbps for nic in up)
    lines = (
        Line("num_nics", str(len(up)), ", ".join(nic.name for nic in up)),
        Line("nic_gbps", f"{slowest:g}" if slowest else _MISSING, "its present rate, under /sys/class"),
    )
    return lines, (Line("fabric", up[0].fabric),), tuple(notes)


def _behind_a_gpu_switch(topology: Topology | None) -> set[str]:
    """NICs (by the names of `topo -m`, which are the kernel's except for NIC#) that share a PCIe switch with a GPU."""
    if topology is None:
        return set()
    near = {nic for gpu in topology.gpus for nic in topology.nics if topology.links[gpu][nic] in ("PIX", "PXB")}
    return {topology.nic_names.get(nic, nic) for nic in near}


def _host_lines(machine: Machine) -> tuple[Line, ...]:
    lines = [Line("cores", str(machine.cores), "usable by this process")]
    if machine.memory_bytes:
        lines.append(Line("host_memory_gib", f"{machine.memory_bytes / GIB:.1f}", "/proc/meminfo"))
    return tuple(lines)


def _slurm(found: _Found, host: str, run: commands.Runner) -> _Found:
    """Add what Slurm knows: how many nodes like this one there are, and how many share a leaf."""
    records = run(("scontrol", "show", "node", "-o"))
    if records.text is None:
        local = (*found.cluster, Line("scheduler", "local"))
        return replace(found, cluster=local, notes=(*found.notes, f"no Slurm: {records.problem}"))
    group = _alike(read_slurm_nodes(records.text), host)
    names = [name for record in group for name in record.names]
    lines = [Line("num_nodes", str(len(names)), "scontrol show node"), Line("scheduler", "slurm")]
    notes = list(found.notes)
    seen = 0 if found.gpu == "cpu" else next(int(line.value) for line in found.node if line.key == "num_gpus")
    if seen < (there := group[0].num_gpus):
        notes.append(
            f"Slurm tells of nodes with {there} GPUs ({group[0].gpu_type or 'no type'}), and this process sees {seen}: "
            f"run it as srun -N1 --exclusive --gres=gpu:{there} launcher discover"
        )
    if away := sorted({record.state for record in group if re.match(r"down|drain|fail", record.state)}):
        notes.append(f"some of the {len(names)} nodes are {', '.join(away)}; they are counted")
    per_leaf, topology_notes = _nodes_per_leaf(names, run)
    if per_leaf:
        lines.append(Line("nodes_per_leaf", str(per_leaf), "scontrol show topology, the largest leaf"))
    return replace(found, cluster=(*found.cluster, *lines), notes=(*notes, *topology_notes))


def _alike(records: Sequence[SlurmNodes], host: str) -> list[SlurmNodes]:
    """The records of this host's kind; on a host that Slurm does not know, those of the largest GPU kind."""

    def kind(record: SlurmNodes) -> tuple[object, ...]:
        return record.num_gpus, record.gpu_type, record.cpus, record.memory_mib // (GIB // MIB)

    sizes = Counter[tuple[object, ...]]()
    for record in records:
        sizes[kind(record)] += len(record.names)
    here = [record for record in records if host in record.names]
    chosen = here[0] if here else max(records, key=lambda record: (record.num_gpus > 0, sizes[kind(record)]))
    return [record for record in records if kind(record) == kind(chosen)]


def _nodes_per_leaf(names: Sequence[str], run: commands.Runner) -> tuple[int, tuple[str, ...]]:
    shown = run(("scontrol", "show", "topology"))
    if shown.text is None or "Name=" not in shown.text:
        return 0, ("Slurm tells no switches: cluster.nodes_per_leaf stays 0, one leaf for all",)
    topology = read_slurm_topology(shown.text)
    ours = set(names)
    return max((len(ours & set(nodes)) for nodes in topology.leaves.values()), default=0), topology.notes


def _yaml(name: str, host: str, found: _Found) -> str:
    heading = [f"# Found by `launcher discover` on {host}; ??? stands for what could not be found out: fill it in."]
    heading += [f"# {printable(note, longest=LONGEST_COMMENT)}" for note in found.notes]
    defaults = ["defaults:", f"  - /gpu@node.gpu: {found.gpu}", "  - _self_", f"name: {name}"]
    num_nodes = [] if any(line.key == "num_nodes" for line in found.cluster) else [Line("num_nodes", "1")]
    body = [*map(_text, [*num_nodes, *found.cluster]), "node:"]
    body += [f"  {_text(line)}" for line in found.node]
    body += ["  gpu:", *(f"    {_text(line)}" for line in found.gpu_lines)] if found.gpu_lines else []
    return "\n".join([*heading, *defaults, *body]) + "\n"


def _text(line: Line) -> str:
    comment = f" # {printable(line.source, longest=LONGEST_COMMENT)}" if line.source else ""
    return f"{line.key}: {line.value}{comment}"
