"""Reads an NCCL topology file (NCCL_TOPO_FILE, NCCL_TOPO_DUMP_FILE): the PCIe tree of a node, its GPUs and NICs.

Format: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-topo-file, src/graph/xml.cc of NCCL.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass

from launcher.errors import InputError
from launcher.text import bounded, printable, whole_number

# PCI class codes, https://pcisig.com (base class 03 display, 02 network): a prefix of what the file prints.
_GPU_CLASSES = ("0x0302", "0x0300")
DEEPEST = 64  # switches behind switches
_NIC_CLASSES = ("0x0200", "0x0207", "0x0280")


@dataclass(frozen=True)
class PciDevice:
    """A GPU or NIC. `path` are the bus ids of the PCIe switches above it, from the CPU down."""

    busid: str
    numa: int
    path: tuple[str, ...]
    device_id: str = ""  # vendor:device as lspci -n writes it, where the file has it
    gbps: float = 0.0  # of a NIC, where the file says it


@dataclass(frozen=True)
class Nvlink:
    """Links of a GPU to a GPU or an NVSwitch, by bus ids."""

    source: str
    target: str
    count: int


@dataclass(frozen=True)
class NcclTopology:
    """The content of an NCCL topology file about one node; `notes` says what it leaves open."""

    gpus: tuple[PciDevice, ...]
    nics: tuple[PciDevice, ...]
    num_numa: int
    notes: tuple[str, ...]
    nvlinks: tuple[Nvlink, ...] = ()

    def near_nics(self, gpu: PciDevice) -> tuple[PciDevice, ...]:
        """The NICs that share most PCIe switches with a GPU; none where no NIC shares any."""
        shared = {nic.busid: _common(gpu.path, nic.path) for nic in self.nics}
        most = max(shared.values(), default=0)
        return tuple(nic for nic in self.nics if most and shared[nic.busid] == most)


class _Shallow(ET.TreeBuilder):
    """Builds the tree of a file that is nested as deep as machines are."""

    depth = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ET.Element:
        self.depth += 1
        if self.depth > DEEPEST:
            raise InputError(f"this is not an NCCL topology: it is nested more than {DEEPEST} deep")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ET.Element:
        self.depth -= 1
        return super().end(tag)


def read_nccl_topology(text: str) -> NcclTopology:
    """The node that the file describes; raises InputError for another or a broken file."""
    if "<!DOCTYPE" in bounded(text, "an NCCL topology") or "<!ENTITY" in text:
        raise InputError("an NCCL topology file has no DOCTYPE or ENTITY: this file is not read")
    try:
        root = ET.fromstring(text, ET.XMLParser(target=_Shallow()))
    except (ET.ParseError, ValueError) as error:  # ValueError: characters that no encoding has
        raise InputError(f"this NCCL topology file is not valid XML ({error})") from error
    if root.tag == "graphs":
        raise InputError(
            "this is an NCCL search graph (NCCL_GRAPH_FILE), not a topology: give the NCCL_TOPO_FILE of the node"
        )
    if root.tag != "system":
        raise InputError(f"this is not an NCCL topology: its root is <{root.tag}>, not <system>")
    gpus: list[PciDevice] = []
    nics: list[PciDevice] = []
    unclassed = 0
    for cpu in root.iter("cpu"):
        numa = _numa(cpu)
        for pci in cpu:
            unclassed += _walk(pci, numa, (), gpus, nics)
    notes = _notes(gpus, nics, unclassed, root)
    links = _nvlinks(root, {gpu.busid for gpu in gpus})
    return NcclTopology(tuple(gpus), tuple(nics), len(root.findall("cpu")), notes, links)


def _nvlinks(root: ET.Element, gpus: set[str]) -> tuple[Nvlink, ...]:
    """NVLinks that lead from one device to another; none where any leads back to its own GPU."""
    found = []
    for pci in root.iter("pci"):
        if pci.get("busid") in gpus:
            for link in pci.iter("nvlink"):
                count = whole_number(link.get("count"))
                found.append(Nvlink(pci.get("busid", ""), link.get("target", ""), 1 if count is None else count))
    if any(link.source == link.target for link in found):
        return ()
    return tuple(found)


def _numa(cpu: ET.Element) -> int:
    text = cpu.get("numaid", "-1")
    if re.fullmatch(r"-?[0-9]{1,9}", text) is None:
        raise InputError(f"this is not an NCCL topology: numaid={printable(text)!r} is no number")
    return int(text)


def _walk(node: ET.Element, numa: int, path: tuple[str, ...], gpus: list[PciDevice], nics: list[PciDevice]) -> int:
    """Collect the devices under one element; returns how many leaves say no class."""
    if node.tag == "nic":  # a NIC without a place in the PCIe tree
        nics.extend(_net(net, numa, path) for net in node.findall("net"))
        return 0
    if node.tag != "pci":
        return 0
    busid, kind = node.get("busid", ""), node.get("class", "")
    if kind.startswith(_GPU_CLASSES):
        gpus.append(PciDevice(busid, numa, path, _device_id(node)))
        return 0
    if kind.startswith(_NIC_CLASSES):
        nets = [_net(net, numa, path) for net in node.iter("net")]
        nics.append(PciDevice(busid, numa, path, _device_id(node), max((net.gbps for net in nets), default=0.0)))
        return 0
    children = [child for child in node if child.tag in ("pci", "nic")]
    if not children:
        return int(not kind)
    return sum(_walk(child, numa, (*path, busid), gpus, nics) for child in children)


def _net(net: ET.Element, numa: int, path: tuple[str, ...]) -> PciDevice:
    """A port; NCCL writes its speed in Mb/s."""
    speed = whole_number(net.get("speed"))
    return PciDevice(printable(net.get("name", "net"), longest=40), numa, path, gbps=(speed or 0) / 1000)


def _device_id(pci: ET.Element) -> str:
    vendor, device = (pci.get(key, "").removeprefix("0x").lower() for key in ("vendor", "device"))
    return f"{vendor}:{device}" if re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}", f"{vendor}:{device}") else ""


def _common(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    shared = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        shared += 1
    return shared


def _notes(gpus: list[PciDevice], nics: list[PciDevice], unclassed: int, root: ET.Element) -> tuple[str, ...]:
    notes = []
    if unclassed:
        notes.append(f"{unclassed} PCI entries say no class: whether they are GPUs or NICs is unknown")
    counts = Counter(device.busid for device in (*gpus, *nics))
    if twice := sorted(busid for busid, count in counts.items() if count > 1):
        shown = printable(", ".join(twice))
        notes.append(f"bus id {shown} is there more than once: this file was not made by this machine's NCCL")
    loops = [link for pci in root.iter("pci") for link in pci.iter("nvlink") if link.get("target") == pci.get("busid")]
    if loops:
        notes.append("NVLinks point back at their own GPU: which GPUs they join is unknown")
    return tuple(notes)
