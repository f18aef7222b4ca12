"""Texts that say something about a cluster, and what each says: known by what is in them, not by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from launcher.cluster.discover.gpus import Card, card_of
from launcher.cluster.hostlist import expand_hostlist
from launcher.cluster.machine import Machine, Nic, read_collected
from launcher.cluster.nvlink import Counts, counts_of, counts_of_file
from launcher.cluster.readers_ib import IbFabric, read_ibnetdiscover
from launcher.cluster.readers_mig import read_mig_parted, read_mig_placements
from launcher.cluster.readers_nccl import read_nccl_topology
from launcher.cluster.readers_pci import read_lspci
from launcher.cluster.readers_ports import read_ibstat, read_nccl_log
from launcher.cluster.readers_slurm import (
    GresGpus,
    SlurmNodes,
    SlurmTopology,
    read_gres,
    read_slurm_nodes,
    read_slurm_topology,
)
from launcher.cluster.readers_smi import read_list, read_mig_instances, read_mig_profiles
from launcher.cluster.readers_smi_log import read_query_log
from launcher.cluster.readers_smi_table import read_smi_table
from launcher.cluster.readers_topo import PCIE_NEAR_TO_FAR, read_topo
from launcher.errors import InputError
from launcher.files import text_of
from launcher.text import whole_number

BEHIND_A_SWITCH = PCIE_NEAR_TO_FAR[:2]  # PIX, PXB: no host bridge between NIC and GPU
MOST_FILES = 4096
LARGEST_FILE = 256 * 2**20
MOST_MARGINS = 8


@dataclass(frozen=True)
class Text:
    """A text with its node ("" if it is about none), and the file or command that it came from."""

    node: str
    source: str
    text: str


@dataclass(frozen=True)
class SeenGpu:
    """A GPU as one source shows it."""

    card: Card
    slices: tuple[str, ...] = ()
    busid: str = ""


@dataclass(frozen=True)
class Seen:
    """The facts of one text about one node; None: not in the text.

    `nvlinks`: links between two GPUs. `near`: NICs (kernel's names or bus ids) behind one PCIe switch with a GPU, of
    those that the text lists, `listed`; `nearest`: those nearest to each GPU. `numa`: of each GPU. `ports`: RDMA ports.
    """

    node: str
    source: str
    gpus: tuple[SeenGpu, ...] | None = None
    num_gpus: int | None = None
    nvlinks: Counts | None = None
    near: frozenset[str] | None = None
    listed: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    nearest: tuple[tuple[str, ...], ...] = ()
    numa: tuple[int, ...] | None = None
    ports: tuple[Nic, ...] = ()
    machine: Machine | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Evidence:
    """All that was read: of nodes, and of the fabric between them."""

    seen: list[Seen] = field(default_factory=list)
    slurm_nodes: list[SlurmNodes] = field(default_factory=list)
    slurm_topology: SlurmTopology | None = None
    gres: list[GresGpus] = field(default_factory=list)
    infiniband: IbFabric | None = None
    notes: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)  # of what is not a node's


def read_texts(texts: Sequence[Text]) -> Evidence:
    """Everything that the texts say; raises InputError for a text in no known format, or a broken one."""
    evidence = Evidence()
    for given in texts:
        text = replace(given, text=_unquoted(given.text))
        kinds = [kind for kind in KINDS if kind.found_in(text.text)]
        if not kinds:
            known = ", ".join(dict.fromkeys(kind.name for kind in KINDS))
            raise InputError(f"{text.source} is in no format that is known here: {known}")
        for kind in kinds:
            try:
                kind.read(
                    evidence, replace(text, source=f"{text.source}, {kind.name}" if len(kinds) > 1 else text.source)
                )
            except InputError as error:
                raise InputError(f"{text.source}: {error}") from error
    return evidence


def _unquoted(text: str) -> str:
    """A paste without the margin that a mail (`> `) or a document (spaces) gave it, where only so a format is known."""
    if any(kind.found_in(text) for kind in KINDS):
        return text
    margins = dict.fromkeys(re.findall(r"^(?:[ \t]{0,8}>[ \t]{0,16}|[ \t]{1,16})", text, flags=re.MULTILINE))
    for margin in sorted(margins, key=len)[:MOST_MARGINS]:
        plain = re.sub(rf"^{re.escape(margin)}", "", text, flags=re.MULTILINE)
        if any(kind.found_in(plain) for kind in KINDS):
            return plain
    return text


def texts_of_files(names: Sequence[str]) -> list[Text]:
    """The texts of files, or of all files in folders; each apart where it holds several nodes.

    The nodes are those of headings (`==> node1 <==`, those of clush -b) or of the start of each line (pdsh). Files of
    one kind are of different nodes, named as the files are up to the first dot; those of different kinds are of one.
    """
    paths = [path for name in names for path in _files(Path(name))]
    if not paths:
        raise InputError(f"from={','.join(names)}: there is no file to read")
    split = [(path, _by_host(_content(path))) for path in paths]
    alone = [path for path, hosts in split if "" in hosts]
    stems = {path: path.name.split(".")[0] for path in alone}
    named = len(set(stems.values())) < len(alone) or _repeated([_content(path) for path in alone])
    return [
        Text(host or (stems[path] if named else ""), path.name, text)
        for path, hosts in split
        for host, text in hosts.items()
    ]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"from={path}: there is no such file")
    found = sorted(child for child in path.iterdir() if child.is_file()) if path.is_dir() else [path]
    if len(found) > MOST_FILES:
        raise InputError(f"from={path}: more than {MOST_FILES} files")
    return [file for file in found if file.suffix != ".source" and not file.name.startswith(".")]


def _content(path: Path) -> str:
    return text_of(path, most_bytes=LARGEST_FILE, give="give the text of one cluster")


def _repeated(texts: Sequence[str]) -> bool:
    """Whether two of the texts say the same kind of thing of a node."""
    kinds = [kind.name for text in texts for kind in KINDS if kind.of_node and kind.found_in(text)]
    return len(set(kinds)) < len(kinds)


def _by_host(text: str) -> dict[str, str]:
    """Host → its part of a text; "" where the text names none."""
    headings = list(re.finditer(r"^(?:==> (\S{1,200}) <==|-{5,}\n(\S{1,400})\n-{5,})$", text, flags=re.MULTILINE))
    if headings:
        found: dict[str, str] = {}
        for heading, after in zip(headings, [*headings[1:], None], strict=True):
            part = text[heading.end() : after.start() if after else len(text)]
            for host in _hosts(heading[1] or heading[2]):
                found[host] = f"{found.get(host, '')}{part}"
        return found
    lines = [line for line in text.splitlines() if line.strip()]
    prefixed = [match for line in lines if (match := re.fullmatch(r"([A-Za-z][\w.-]{0,100}): ?(.*)", line))]
    if not lines or len(prefixed) < len(lines) or len({match[1] for match in prefixed}) > len(lines) // 2:
        return {"": text}
    parts: dict[str, list[str]] = {}
    for match in prefixed:
        parts.setdefault(match[1], []).append(match[2])
    return {host: "\n".join(part) + "\n" for host, part in parts.items()}


def _hosts(heading: str) -> Sequence[str]:
    """Of a heading: clush folds nodes with the same output; `tail` prints paths."""
    name = heading.rpartition("/")[2].split(".")[0] if "[" not in heading else heading
    try:
        return expand_hostlist(name)
    except InputError:
        return (name,)


@dataclass(frozen=True)
class Kind:
    """A format: how to recognise it (`without`: of a text that lacks this), and how to read it. `of_node`: it describes
    one node.
    """

    name: str
    mark: re.Pattern[str]
    read: Callable[[Evidence, Text], None]
    of_node: bool = True
    without: str = ""

    def found_in(self, text: str) -> bool:
        return self.mark.search(text) is not None and not (self.without and self.without in text)


def _listed(evidence: Evidence, text: Text) -> None:
    lines = [line for line in text.text.splitlines() if re.match(r"GPU [0-9]|\s+MIG ", line)]
    gpus = read_list("\n".join(lines))
    seen = tuple(SeenGpu(card_of(gpu.name), tuple(part.profile for part in gpu.slices)) for gpu in gpus)
    evidence.seen.append(Seen(text.node, text.source, seen, len(seen)))


def _logged(evidence: Evidence, text: Text) -> None:
    gpus = read_query_log(text.text)
    problems = [
        f"GPU {gpu.busid} has {gpu.pcie_width} of its {gpu.full_pcie_width} PCIe lanes"
        for gpu in gpus
        if gpu.pcie_width and gpu.full_pcie_width and gpu.pcie_width < gpu.full_pcie_width
    ]
    seen = tuple(SeenGpu(card_of(gpu.name), busid=gpu.busid) for gpu in gpus)
    cut = sum(gpu.mig_enabled is True for gpu in gpus)
    notes = (f"MIG is on for {cut} of {len(gpus)} GPUs: `nvidia-smi -L` says how they are cut",) if cut else ()
    evidence.seen.append(Seen(text.node, text.source, seen, len(seen), problems=tuple(problems), notes=notes))


def _matrix(evidence: Evidence, text: Text) -> None:
    topology = read_topo(text.text)
    names = {nic: topology.nic_names.get(nic, nic) for nic in topology.nics}
    near = {names[nic] for gpu in topology.gpus for nic in topology.nics if topology.links[gpu][nic] in BEHIND_A_SWITCH}
    evidence.seen.append(
        Seen(
            text.node,
            text.source,
            num_gpus=len(topology.gpus),
            nvlinks=counts_of(topology),
            near=frozenset(near),
            listed=dict.fromkeys(names.values(), 0.0),
            nearest=tuple(tuple(names[nic] for nic in topology.near_nics(gpu)) for gpu in range(len(topology.gpus))),
            numa=_numbers(topology.numa),
            notes=topology.notes,
        )
    )


def _numbers(words: Sequence[str]) -> tuple[int, ...] | None:
    """NUMA nodes, where all are known."""
    found = [whole_number(word) for word in words]
    return tuple(each for each in found if each is not None) if found and None not in found else None


def _nccl(evidence: Evidence, text: Text) -> None:
    start, end = text.text.find("<system"), text.text.rfind("</system>")
    topology = read_nccl_topology(text.text[start : end + len("</system>")] if 0 <= start < end else text.text)
    gpus = tuple(SeenGpu(card_of(device_id=gpu.device_id), busid=gpu.busid) for gpu in topology.gpus)
    near = {nic.busid for gpu in topology.gpus for nic in topology.near_nics(gpu)}
    evidence.seen.append(
        Seen(
            text.node,
            text.source,
            gpus or None,
            len(gpus) or None,
            counts_of_file(topology),
            frozenset(near),
            {nic.busid: nic.gbps for nic in topology.nics},
            tuple(tuple(nic.busid for nic in topology.near_nics(gpu)) for gpu in topology.gpus),
            _numbers([str(gpu.numa) for gpu in topology.gpus]),
            notes=topology.notes,
        )
    )


def _cards(evidence: Evidence, text: Text) -> None:
    cards = read_lspci("\n".join(text.text.splitlines()))
    gpus = tuple(SeenGpu(card_of(card.name, card.device_id), busid=card.busid) for card in cards if card.is_gpu)
    problems = tuple(
        f"{card.busid} ({card.name}) has {card.width} of its {card.full_width} PCIe lanes"
        for card in cards
        if card.width and card.width < card.full_width
    )
    evidence.seen.append(Seen(text.node, text.source, gpus or None, len(gpus) or None, problems=problems))


def _collected(evidence: Evidence, text: Text) -> None:
    machine = read_collected(text.text)
    evidence.seen.append(Seen(text.node or machine.host, text.source, machine=machine))


def _table(evidence: Evidence, text: Text) -> None:
    gpus = read_smi_table(text.text)
    seen = tuple(SeenGpu(card_of(gpu.name, memory_mib=gpu.memory_mib), busid=gpu.busid) for gpu in gpus)
    cut = sum(gpu.mig_enabled is True for gpu in gpus)
    notes = (f"MIG is on for {cut} of {len(gpus)} GPUs: `nvidia-smi -L` says how they are cut",) if cut else ()
    evidence.seen.append(Seen(text.node, text.source, seen, len(seen), notes=notes))


def _ports(evidence: Evidence, text: Text) -> None:
    evidence.seen.append(Seen(text.node, text.source, ports=read_ibstat(text.text)))


def _logged_ports(evidence: Evidence, text: Text) -> None:
    evidence.seen.append(Seen(text.node, text.source, ports=read_nccl_log(text.text)))


def _mig_text(evidence: Evidence, text: Text) -> None:
    """Instances say how GPUs are cut; profiles and placements how they can be."""
    if "GPU instances" not in text.text:
        if "Profile ID" in text.text:
            read_mig_placements(text.text)
        else:
            read_mig_profiles(text.text)
        evidence.notes.append(f"{text.source} says how GPUs can be cut, not how they are: `nvidia-smi -L` says that")
        return
    slices: dict[int, list[str]] = {}
    for instance in read_mig_instances(text.text):
        slices.setdefault(instance.gpu, []).append(instance.profile)
    gpus = tuple(SeenGpu(Card("", None), tuple(slices[gpu])) for gpu in sorted(slices))
    evidence.seen.append(Seen(text.node, text.source, gpus, len(gpus)))


def _mig_parted(evidence: Evidence, text: Text) -> None:
    names = list(read_mig_parted(text.text))
    shown = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
    evidence.notes.append(
        f"{text.source} names {len(names)} ways to cut GPUs ({shown}): which is in force it does not say"
    )


def _slurm_nodes(evidence: Evidence, text: Text) -> None:
    joined = re.sub(r"\n(?=[ \t]+\S)", " ", text.text)  # `scontrol show node` without -o
    evidence.slurm_nodes += read_slurm_nodes(joined)
    evidence.sources["slurm nodes"] = text.source


def _slurm_topology(evidence: Evidence, text: Text) -> None:
    evidence.slurm_topology = read_slurm_topology(text.text)
    evidence.sources["slurm topology"] = text.source


def _gres(evidence: Evidence, text: Text) -> None:
    evidence.gres += read_gres(text.text)
    evidence.sources["gres"] = text.source


def _auto_gres(evidence: Evidence, text: Text) -> None:
    evidence.notes.append(f"{text.source} leaves the GPUs to AutoDetect: `scontrol show node -o` says what was found")


def _infiniband(evidence: Evidence, text: Text) -> None:
    evidence.infiniband = read_ibnetdiscover(text.text)
    evidence.sources["infiniband"] = text.source


def _mark(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.MULTILINE)


KINDS = (
    Kind("nvidia-smi -L", _mark(r"^GPU [0-9]{1,4}: .{1,200}\(UUID: GPU-"), _listed),
    Kind("nvidia-smi -q", _mark(r"^[ \t]*Product Name[ \t]*: "), _logged),
    Kind("nvidia-smi", _mark(r"^\|[ \t]*NVIDIA-SMI [0-9]"), _table),
    Kind("nvidia-smi topo -m", _mark(r"^GPU[0-9]{1,3}[ \t]+(X|NV[0-9]|PIX|PXB|PHB|NODE|SYS)"), _matrix),
    Kind("nvidia-smi mig", _mark(r"^\| GPU instance|^GPU[ \t]+[0-9]{1,4} Profile ID"), _mig_text),
    Kind("mig-parted", _mark(r"^mig-configs:"), _mig_parted, of_node=False),
    Kind("NCCL topology", _mark(r"<system[ >]|<graphs[ >]"), _nccl),
    Kind("lspci", _mark(r"^([0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7] [A-Z0-9][^:\n]{1,60}: "), _cards),
    Kind("ibstat", _mark(r"^CA '[\w.-]{1,60}'"), _ports),
    Kind("the log of NCCL", _mark(r"NCCL INFO NET/IB : Using \["), _logged_ports),
    Kind("the collector's output", _mark(r"^/(sys/class|proc/meminfo|sys/devices)[\w./@:+-]*:"), _collected),
    Kind("scontrol show node, slurm.conf", _mark(r"^[ \t]*NodeName=(?!.*\bName=gpu)"), _slurm_nodes, of_node=False),
    Kind(
        "scontrol show topology, topology.conf or .yaml",
        _mark(r"^[ \t]*(SwitchName|BlockName)=|^[ \t-]*topology:"),
        _slurm_topology,
        of_node=False,
    ),
    Kind(
        "gres.conf",
        _mark(r"^[ \t]*(NodeName=\S+ +)?(AutoDetect=\S+ +)?Name=gpu|^\{%.*autodetect"),
        _gres,
        of_node=False,
    ),
    Kind("gres.conf", _mark(r"^[ \t]*AutoDetect=\w"), _auto_gres, of_node=False, without="Name=gpu"),
    Kind("ibnetdiscover", _mark(r"^switchguid=|^Switch[ \t]+[0-9]+ \"S-"), _infiniband, of_node=False),
)
