"""Reads what Linux says of a node under /proc and /sys: cores, memory, sockets, network adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launcher import env
from launcher.errors import InputError
from launcher.text import bounded, decimal_number, printable, whole_number
from launcher.units import KIB

RDMA_FABRICS = ("infiniband", "roce")  # whose devices NCCL_IB_HCA names
LONGEST_FILE = 2**20  # characters of a system file
MOST_COLLECTED = 16 * 2**20
_RDMA, _NET, _CPU = "sys/class/infiniband", "sys/class/net", "sys/devices/system/cpu"

# Prints what `read_collected` reads, on a node where nothing of ours is installed.
COLLECTOR = (
    "sh -c 'echo host:$(hostname); for f in /proc/meminfo /sys/class/infiniband/*/ports/*/rate "
    "/sys/class/infiniband/*/ports/*/state /sys/class/infiniband/*/ports/*/link_layer /sys/class/net/*/speed "
    "/sys/class/net/*/operstate /sys/devices/system/cpu/cpu[0-9]*/topology/physical_package_id "
    '/sys/devices/system/cpu/cpu[0-9]*/topology/core_id; do [ -r $f ] && sed "s|^|$f:|" $f 2>/dev/null; done; '
    "for d in /sys/class/infiniband/*/device /sys/class/net/*/device; do [ -L $d ] && "
    "echo $d:$(basename $(readlink $d)); done'"
)


@dataclass(frozen=True)
class Nic:
    """One network port. `gbps` is its present rate, 0 where unknown; `fabric` is infiniband, roce, efa or ethernet.

    `busid`: of its PCI device, "" where unknown.
    """

    name: str
    fabric: str
    gbps: float
    active: bool
    busid: str = ""

    @property
    def device(self) -> str:
        """The name without a port."""
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Machine:
    """This node without its GPUs. `cores` are those that this process may use; 0: unknown.

    `nics` are its RDMA ports, `interfaces` the names of all network interfaces, `ethernet` those with hardware behind.
    """

    cores: int
    memory_bytes: int
    sockets: int
    nics: tuple[Nic, ...]
    interfaces: tuple[str, ...]
    ethernet: tuple[Nic, ...] = ()
    host: str = ""


class SystemFiles(Protocol):
    """The small files of a system, by paths without the first slash."""

    def text(self, path: str) -> str:
        """A file's text; empty where there is none."""

    def names(self, folder: str) -> list[str]:
        """Return the entries of a folder."""

    def link(self, path: str) -> str:
        """The last part of where a link leads; empty where that is no link."""


class FilesUnder:
    """The files of this system, or of one with its root in a folder here."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def text(self, path: str) -> str:
        try:
            with (self._root / path).open(encoding="utf-8", errors="replace") as opened:
                return opened.read(LONGEST_FILE).strip()
        except OSError:
            return ""

    def names(self, folder: str) -> list[str]:
        return [path.name for path in (self._root / folder).glob("*")]

    def link(self, path: str) -> str:
        try:
            return (self._root / path).readlink().name
        except OSError:
            return ""


class CollectedFiles:
    """The files that COLLECTOR printed."""

    def __init__(self, lines: Mapping[str, str]) -> None:
        self._lines = lines
        self._folders: dict[str, set[str]] = {}
        for path in lines:
            parts = path.split("/")
            for depth in range(1, len(parts)):
                self._folders.setdefault("/".join(parts[:depth]), set()).add(parts[depth])

    def text(self, path: str) -> str:
        return self._lines.get(path, "").strip()

    def names(self, folder: str) -> list[str]:
        return sorted(self._folders.get(folder, ()))

    def link(self, path: str) -> str:
        return self.text(path)


def read_machine(root: Path = Path("/")) -> Machine:
    """Read the machine with /proc and /sys under `root`."""
    return _machine(FilesUnder(root), cores=env.usable_cores())


def read_collected(text: str) -> Machine:
    """Read the machine from the output of COLLECTOR; raises InputError for another text."""
    lines: dict[str, str] = {}
    host = ""
    for line in bounded(text, "what the collector prints", most=MOST_COLLECTED).splitlines():
        if match := re.fullmatch(r"/((?:sys|proc)/[\w./@:+-]{1,200}?):(.*)", line):
            lines[match[1]] = f"{lines.get(match[1], '')}{match[2]}\n"
        elif match := re.fullmatch(r"host:([\w.-]{1,200})", line):
            host = match[1]
    if not lines:
        raise InputError("this is not what the collector prints: no line names a file under /sys or /proc")
    files = CollectedFiles(lines)
    topology = [f"{_CPU}/{cpu}/topology" for cpu in files.names(_CPU)]
    cores = {(files.text(f"{folder}/physical_package_id"), files.text(f"{folder}/core_id")) for folder in topology}
    return _machine(files, cores=len(cores), host=printable(host))


def _machine(files: SystemFiles, *, cores: int, host: str = "") -> Machine:
    packages = (files.text(f"{_CPU}/{cpu}/topology/physical_package_id") for cpu in files.names(_CPU))
    return Machine(
        cores=cores,
        memory_bytes=_memory_bytes(files),
        sockets=len({package for package in packages if package}),
        nics=_nics(files),
        interfaces=tuple(sorted(files.names(_NET))),
        ethernet=_ethernet(files),
        host=host,
    )


def _memory_bytes(files: SystemFiles) -> int:
    match = re.search(r"^MemTotal:\s+([0-9]{1,18}) kB", files.text("proc/meminfo"), flags=re.MULTILINE)
    return int(match[1]) * KIB if match else 0


def _nics(files: SystemFiles) -> tuple[Nic, ...]:
    """RDMA ports: https://docs.kernel.org/ABI/stable/sysfs-class-infiniband"""
    found = []
    for name in sorted(files.names(_RDMA), key=natural):
        for port in sorted(files.names(f"{_RDMA}/{name}/ports")):
            found.append(_nic(files, name, port))
    return tuple(found)


def _nic(files: SystemFiles, name: str, port: str) -> Nic:
    folder = f"{_RDMA}/{name}/ports/{port}"
    layer = files.text(f"{folder}/link_layer")
    rate = decimal_number(files.text(f"{folder}/rate").partition(" Gb/sec")[0])
    fabric = "efa" if "efa" in name or layer == "Unspecified" else "roce" if layer == "Ethernet" else "infiniband"
    active = files.text(f"{folder}/state").endswith("ACTIVE")
    return Nic(port_name(name, port), fabric, rate or 0.0, active, files.link(f"{_RDMA}/{name}/device"))


def port_name(device: str, port: str) -> str:
    """An RDMA port as NCCL_IB_HCA names it; the first is its device."""
    return device if port == "1" else f"{device}:{port}"


def _ethernet(files: SystemFiles) -> tuple[Nic, ...]:
    """Interfaces with a device. Their speed is in Mb/s, -1 where unknown.

    https://docs.kernel.org/ABI/testing/sysfs-class-net
    """
    names = (name for name in files.names(_NET) if "device" in files.names(f"{_NET}/{name}"))
    return tuple(
        Nic(
            name,
            "ethernet",
            (whole_number(files.text(f"{_NET}/{name}/speed")) or 0) / 1000,
            files.text(f"{_NET}/{name}/operstate") == "up",
            files.link(f"{_NET}/{name}/device"),
        )
        for name in sorted(names, key=natural)
    )


def natural(name: str) -> tuple[object, ...]:
    """mlx5_2 before mlx5_10."""
    parts = re.split(r"([0-9]{1,18})", name)  # texts and numbers by turns
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts))
