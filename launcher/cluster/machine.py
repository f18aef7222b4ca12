"""Reads what Linux says of this node under /proc and /sys: cores, memory, sockets, network adapters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from launcher import env
from launcher.text import decimal_number, whole_number
from launcher.units import KIB

LONGEST_FILE = 2**20  # characters of a system file


@dataclass(frozen=True)
class Nic:
    """One network port. `gbps` is its present rate, 0 where unknown; `fabric` is infiniband, roce, efa or ethernet."""

    name: str
    fabric: str
    gbps: float
    active: bool


@dataclass(frozen=True)
class Machine:
    """This node without its GPUs. `cores` are those that this process may use; 0 stands for unknown.

    `nics` are its RDMA ports, `interfaces` the names of all network interfaces, `ethernet` those with hardware behind.
    """

    cores: int
    memory_bytes: int
    sockets: int
    nics: tuple[Nic, ...]
    interfaces: tuple[str, ...]
    ethernet: tuple[Nic, ...] = ()


def read_machine(root: Path = Path("/")) -> Machine:
    """The machine whose /proc and /sys lie under `root`."""
    return Machine(
        cores=env.usable_cores(),
        memory_bytes=_memory_bytes(root / "proc/meminfo"),
        sockets=len(
            {_text(file) for file in (root / "sys/devices/system/cpu").glob("cpu*/topology/physical_package_id")}
        ),
        nics=_nics(root / "sys/class/infiniband"),
        interfaces=tuple(sorted(path.name for path in (root / "sys/class/net").glob("*"))),
        ethernet=_ethernet(root / "sys/class/net"),
    )


def _memory_bytes(file: Path) -> int:
    match = re.search(r"^MemTotal:\s+([0-9]{1,18}) kB", _text(file), flags=re.MULTILINE)
    return int(match[1]) * KIB if match else 0


def _nics(folder: Path) -> tuple[Nic, ...]:
    """RDMA ports: https://docs.kernel.org/ABI/stable/sysfs-class-infiniband"""
    ports = sorted(folder.glob("*/ports/*"), key=lambda port: (_natural(port.parent.parent.name), port.name))
    return tuple(_nic(port) for port in ports)


def _nic(port: Path) -> Nic:
    name = port.parent.parent.name
    layer = _text(port / "link_layer")
    rate = decimal_number(_text(port / "rate").partition(" Gb/sec")[0])
    fabric = "efa" if "efa" in name or layer == "Unspecified" else "roce" if layer == "Ethernet" else "infiniband"
    return Nic(name, fabric, rate or 0.0, _text(port / "state").endswith("ACTIVE"))


def _ethernet(folder: Path) -> tuple[Nic, ...]:
    """Interfaces with a device. Their speed is in Mb/s, -1 where unknown.

    https://docs.kernel.org/ABI/testing/sysfs-class-net
    """
    devices = sorted((path for path in folder.glob("*") if (path / "device").exists()), key=lambda p: _natural(p.name))
    return tuple(
        Nic(path.name, "ethernet", _speed_gbps(path / "speed"), _text(path / "operstate") == "up") for path in devices
    )


def _speed_gbps(file: Path) -> float:
    return (whole_number(_text(file)) or 0) / 1000


def _natural(name: str) -> tuple[object, ...]:
    """mlx5_2 before mlx5_10."""
    parts = re.split(r"([0-9]{1,18})", name)  # texts and numbers by turns
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts))


def _text(file: Path) -> str:
    """A small system file; empty where the kernel does not offer it."""
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            return opened.read(LONGEST_FILE).strip()
    except OSError:
        return ""
