"""Configuration of the rendezvous: names, addresses and ports, without torch."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import randrange
from typing import NamedTuple

from launcher.errors import InputError, LauncherError

BACKEND = "launcher"  # our rendezvous, as torchrun names it
FIRST_PORT, NUM_PORTS = 20000, 10000  # below Linux's ephemeral range (32768-60999)
NUM_CHOICES = 3  # ports of a run: another program may have taken the first one


class Meeting(NamedTuple):
    """One start of a job: its name, where its nodes meet, and what they prove that they belong to it by.

    `port`: the one that was given; None: one of those of the run id.
    """

    run_id: str
    host: str
    port: int | None
    secret: str


@dataclass(frozen=True)
class RendezvousConfig:
    """How a node joins the others. `node` None: a spare, which replaces a lost node. `port`: as in Meeting.

    `secret`: known only to the job's agents; empty: the run id is enough to join.
    """

    run_id: str
    host: str
    port: int | None
    num_nodes: int
    node: int | None
    name: str
    secret: str = field(default="", repr=False)
    min_nodes: int | None = None
    hosts: tuple[str, ...] = ()
    local_address: str | None = None
    join_timeout_s: float = 600.0
    rejoin_timeout_s: float = 120.0
    last_call_s: float = 30.0
    spare_wait_s: float = 10.0

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports where the coordinator may listen, the first choice first."""
        return (self.port,) if self.port is not None else derived_ports(self.run_id)


def node_of_host(name: str, hosts: Sequence[str]) -> int | None:
    """Return a host's node in the plan: by its exact name, else without its domain, else ignoring case.

    None if no name or more than one matches.
    """
    forms: tuple[Callable[[str], str], ...] = (str, _short, str.casefold, lambda host: _short(host).casefold())
    for form in forms:
        found = [i for i, host in enumerate(hosts) if form(host) == form(name)]
        if len(found) == 1:
            return found[0]
    return None


def refuse_hidden_loopback(host: str, *, num_nodes: int) -> None:
    """Raise InputError if a host name resolves to loopback on its own machine, as with Debian's 127.0.1.1."""
    try:
        address = ipaddress.ip_address(socket.getaddrinfo(host, None)[0][4][0])
    except OSError as error:
        raise InputError(f"the coordinator's name {host} has no address here ({error.strerror})") from error
    if num_nodes > 1 and address.is_loopback and host not in (str(address), "localhost"):
        raise InputError(
            f"{host} is {address} on its own machine, which the other {num_nodes - 1} nodes cannot reach: "
            "give the address of its network interface as the coordinator"
        )


def derived_ports(run_id: str) -> tuple[int, ...]:
    """Return the same ports for all nodes of a run, outside the kernel's ephemeral range, the first choice first."""
    digest = hashlib.sha256(run_id.encode()).digest()
    numbers = (int.from_bytes(digest[at : at + 4], "big") for at in range(0, 4 * NUM_CHOICES, 4))
    return tuple(dict.fromkeys(FIRST_PORT + number % NUM_PORTS for number in numbers))


def derived_port(run_id: str) -> int:
    """Return the first of `derived_ports`."""
    return derived_ports(run_id)[0]


def free_port(host: str) -> int:
    """Return a port that is free on `host`, outside the ephemeral range, so that the kernel does not assign it."""
    for port in (*(FIRST_PORT + randrange(NUM_PORTS) for _ in range(100)), 0):
        with suppress(OSError):  # taken
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family) as probe:
                probe.bind(address)
                found: int = probe.getsockname()[1]
                return found
    raise LauncherError(f"{host} has no free port, or is not an address of this machine")


def split_endpoint(text: str) -> tuple[str, int | None]:
    """Parse `host:port`, `host`, `[::1]:port`, `[::1]` or `::1`; raises InputError for anything else."""
    bracketed = re.fullmatch(r"\[(?P<host>[^][]+)\](:(?P<port>\d{1,5}))?", text, re.ASCII)
    plain = re.fullmatch(r"(?P<host>[^][:\s]+)(:(?P<port>\d{1,5}))?", text, re.ASCII)
    found = bracketed or plain
    host, port = (found["host"], found["port"]) if found else (text, None)
    if (not plain and not _is_ipv6(host)) or (port and not 0 < int(port) < 65536):
        raise InputError(f"{text!r} must be HOST:PORT with a port from 1 to 65535; an IPv6 address as [::1]:29400")
    return host, int(port) if port else None


def endpoint(host: str, port: int) -> str:
    """`host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _short(host: str) -> str:
    return host.partition(".")[0]
