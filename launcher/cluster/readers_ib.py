"""Reads `ibnetdiscover`: ports of nodes, their switches and rates.

Format: https://github.com/linux-rdma/rdma-core/blob/master/infiniband-diags/man/ibnetdiscover.8.in.rst
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from launcher.errors import InputError
from launcher.text import bounded, printable

MOST_CHARACTERS = 256 * 2**20  # a port has a line of about 100
# Gb/s of a lane's data, https://www.infinibandta.org/infiniband-roadmap/
LANE_GBPS = {"SDR": 2.5, "DDR": 5, "QDR": 10, "FDR10": 10, "FDR": 14, "EDR": 25, "HDR": 50, "NDR": 100, "XDR": 200}
_SWITCH = re.compile(r'Switch\s+[0-9]{1,4}\s+"S-([0-9a-f]{1,32})"\s*#\s*"([^"\n]{0,200})"')
_PORT = re.compile(
    r'\[[0-9]{1,4}\](?:\[ext [0-9]{1,4}\])?\s+"([HS])-([0-9a-f]{1,32})"\[[0-9]{1,4}\](?:\(([0-9a-f]{1,32})\))?'
    r'\s*#\s*"([^"\n]{0,200})"(?:.{0,40}?\b([0-9]{1,2})x([A-Z]{3}[0-9]{0,2}))?'  # older versions print no rate
)
_NAMED = re.compile(r"([\w.-]+) ([\w-]+)")
_UNNAMED = re.compile(r"Mellanox|ConnectX|MT[0-9]{4,}|localhost|ubuntu", re.IGNORECASE)


@dataclass(frozen=True)
class IbPort:
    """A port of a node on a switch. `host` is "" where the fabric knows no name for it."""

    host: str
    device: str
    guid: str
    switch: str
    gbps: float


@dataclass(frozen=True)
class IbFabric:
    """Ports of nodes, and by switch (its GUID) the Gb/s of its links to other switches. `names` are the switches'."""

    ports: tuple[IbPort, ...]
    uplink_gbps: Mapping[str, float]
    names: Mapping[str, str]

    @cached_property
    def hosts(self) -> dict[str, tuple[str, ...]]:
        """Host → the switches that it is on, each once."""
        found: dict[str, dict[str, None]] = {}
        for port in self.ports:
            if port.host:
                found.setdefault(port.host, {})[port.switch] = None
        return {host: tuple(switches) for host, switches in found.items()}

    @cached_property
    def host_of_guid(self) -> dict[str, str]:
        """Port GUID → host."""
        return {port.guid: port.host for port in self.ports if port.host}

    @property
    def rails(self) -> int:
        """Leaf switches that most hosts are on."""
        counts = Counter(len(switches) for switches in self.hosts.values())
        return counts.most_common(1)[0][0] if counts else 0

    def leaf_hosts(self) -> dict[str, tuple[str, ...]]:
        """First leaf of each set of leaves → the hosts on it, of those hosts that are on as many leaves as most."""
        found: dict[str, list[str]] = {}
        for host, switches in sorted(self.hosts.items()):
            if len(switches) == self.rails:
                found.setdefault(min(switches), []).append(host)
        return {leaf: tuple(hosts) for leaf, hosts in found.items()}

    @property
    def oversubscription(self) -> float | None:
        """What leaves can take in over what they pass up, of most leaves; None where no switch is above them."""
        down: Counter[str] = Counter()
        for port in self.ports:
            down[port.switch] += round(port.gbps)
        ratios = [
            total / self.uplink_gbps[leaf] for leaf, total in down.items() if total and self.uplink_gbps.get(leaf)
        ]
        return sorted(ratios)[len(ratios) // 2] if ratios else None


def read_ibnetdiscover(text: str) -> IbFabric:
    """The fabric out of the text; raises InputError for another text."""
    ports: list[IbPort] = []
    uplinks: Counter[str] = Counter()
    names: dict[str, str] = {}
    switch = None
    for line in bounded(text, "`ibnetdiscover`", most=MOST_CHARACTERS).splitlines():
        if match := _SWITCH.match(line):
            switch = match[1]
            names[switch] = printable(match[2])
        elif line.startswith("Ca"):
            switch = None
        elif switch and (match := _PORT.match(line)):
            gbps = int(match[5] or 0) * LANE_GBPS.get(match[6] or "", 0.0)
            if match[1] == "S":
                uplinks[switch] += round(gbps)
            elif "Aggregation Node" not in match[4]:
                ports.append(_port(match, switch, gbps))
    if not names:
        raise InputError("this is not `ibnetdiscover`: no line names a switch")
    return IbFabric(tuple(ports), uplinks, names)


def _port(match: re.Match[str], switch: str, gbps: float) -> IbPort:
    named = _NAMED.fullmatch(match[4].strip())
    known = named is not None and not _UNNAMED.search(match[4])
    host, device = (named[1], named[2]) if named and known else ("", printable(match[4], longest=40))
    return IbPort(host, device, match[3] or match[2], switch, gbps)
