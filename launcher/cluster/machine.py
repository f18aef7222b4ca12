"""Reads what Linux says of this node under /proc and /sys: cores, memory, sockets, network adapters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from launcher import env
from launcher.units import KIB


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
    match = re.search(r"^MemTotal:\s+(\d+) kB", _text(file), flags=re.MULTILINE)
    return int(match[1]) * KIB if match else 0


def _nics(folder: Path) -> tuple[Nic, ...]:
    """RDMA ports: https://docs.kernel.org/ABI/stable/sysfs-class-infiniband"""
    ports = sorted(folder.glob("*/ports/*"), key=lambda port: (_natural(port.parent.parent.name), port.name))
    return tuple(_nic(port) for port in ports)


def _nic(port: Path) -> Nic:
    name = port.parent.parent.name
    layer = _text(port / "link_layer")
    rate = re.match(r"([\d.]+) Gb/sec", _text(port / "rate"))
    fabric = "efa" if "efa" in name or layer == "Unspecified" else "roce" if layer == "Ethernet" else "infiniband"
    return Nic(name, fabric, float(rate[1]) if rate else 0.0, _text(port / "state").endswith("ACTIVE"))


def _ethernet(folder: Path) -> tuple[Nic, ...]:
    """Interfaces with a device. Their speed is in Mb/s, -1 where unknown.

    https://docs.kernel.org/ABI/testing/sysfs-class-net
    """
    devices = sorted((path for path in folder.glob("*") if (path / "device").exists()), key=lambda p: _natural(p.name))
    return tuple(
        Nic(path.name, "ethernet", _speed_gbps(path / "speed"), _text(path / "operstate") == "up") for path in devices
    )


def _speed_gbps(file: Path) -> float:
    text = _text(file)
    return int(text) / 1000 if text.isdigit() else 0.0


def _natural(name: str) -> tuple[object, ...]:
    """mlx5_2 before mlx5_10."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))


def _text(file: Path) -> str:
    """A small system file; empty where the kernel does not offer it."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
