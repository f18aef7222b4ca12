"""Reads `ibstat` and the lines of NCCL's own log (NCCL_DEBUG=INFO) that name adapters.

Formats: https://github.com/linux-rdma/rdma-core/blob/master/infiniband-diags/man/ibstat.8.in.rst, and
src/transport/net_ib.cc of NCCL (`NET/IB : Using [0]mlx5_0:1/IB …`).
"""

from __future__ import annotations

import re

from launcher.cluster.machine import Nic, port_name
from launcher.errors import InputError
from launcher.text import bounded, decimal_number, printable

_CA = re.compile(r"^[ \t]*CA '([\w.-]{1,60})'", re.MULTILINE)
_PORT = re.compile(r"^[ \t]*Port ([0-9]{1,3}):", re.MULTILINE)
_USING = re.compile(r"NET/IB : Using ((?:\[[0-9]{1,3}\]\S{1,80} ?){1,64})")
_USED = re.compile(r"\[[0-9]{1,3}\]([\w.-]{1,60}?):([0-9]{1,3})/(IB|RoCE)\b")
MOST_CHARACTERS = 16 * 2**20


def read_ibstat(text: str) -> tuple[Nic, ...]:
    """The ports out of `ibstat`; raises InputError for another text."""
    parts = _CA.split(bounded(text, "`ibstat`", most=MOST_CHARACTERS))
    found = [nic for name, body in zip(parts[1::2], parts[2::2], strict=True) for nic in _ports(name, body)]
    if not found:
        raise InputError("this is not `ibstat`: no adapter (CA) with a port")
    return tuple(found)


def _ports(name: str, body: str) -> list[Nic]:
    """The ports of one adapter."""
    parts = _PORT.split(body)
    nics = []
    for number, port in zip(parts[1::2], parts[2::2], strict=True):
        values = dict(re.findall(r"^[ \t]*([A-Z][\w ]{1,40}): ?(.{0,80})$", port, flags=re.MULTILINE))
        rate = decimal_number(values.get("Rate", "").split(" ")[0])
        fabric = "roce" if values.get("Link layer", "").strip() == "Ethernet" else "infiniband"
        active = values.get("State", "").strip() == "Active"
        nics.append(Nic(printable(port_name(name, number)), fabric, rate or 0.0, active))
    return nics


def read_nccl_log(text: str) -> tuple[Nic, ...]:
    """The adapters that NCCL says it uses, of unknown rate; raises InputError where its log names none."""
    match = _USING.search(bounded(text, "NCCL's log", most=MOST_CHARACTERS))
    names = {(name, port): kind for name, port, kind in _USED.findall(match[1])} if match else {}
    if not names:
        raise InputError("this log of NCCL names no adapters: run with NCCL_DEBUG=INFO, and give the whole log")
    return tuple(
        Nic(printable(port_name(name, port)), "roce" if kind == "RoCE" else "infiniband", 0.0, True)
        for (name, port), kind in names.items()
    )
