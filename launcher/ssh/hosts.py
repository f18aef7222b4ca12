"""The hosts of a run, as people name them: `user@host:slots` in launch.hosts, or a line each of a hostfile. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from launcher.errors import InputError
from launcher.text import in_brief

# No name begins with "-", which ssh would take for an option.
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_HOST = re.compile(
    rf"((?P<user>{_NAME})@)?(?P<host>{_NAME}|\[[0-9A-Fa-f:.]+(%{_NAME})?\]|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)"
    r"(:(?P<slots>[0-9]{1,5}))?"
)
LONGEST = 1000  # characters of a host; a name has 253 at most
FORM = "write each host as [USER@]HOST[:SLOTS], an IPv6 address with slots as [::1]:4"
_FIELDS = {"slots", "port", "user", "max_slots", "max-slots"}


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where one agent runs. `name` as ssh gets it, which may be an alias in its configuration. None: not said."""

    name: str
    user: str | None = None
    port: int | None = None
    slots: int | None = None

    @property
    def destination(self) -> str:
        """What ssh takes for the host."""
        return f"{self.user}@{self.name}" if self.user else self.name


def parse_host(text: str) -> Host:
    """A host of launch.hosts; raises ValueError with what is wrong."""
    found = _HOST.fullmatch(text.strip()) if len(text) <= LONGEST else None
    if found is None:
        raise ValueError(f"has {in_brief(repr(text))}, which is no host: {FORM}")
    name = found["host"].strip("[]")
    if ":" in name:
        _check_ipv6(name, text)
    slots = int(found["slots"]) if found["slots"] else None
    if slots == 0:
        raise ValueError(f"has {text!r} with no slots: leave the host out, or give it one")
    return Host(name=name, user=found["user"], slots=slots)


def _check_ipv6(name: str, text: str) -> None:
    try:
        ip_address(name)
    except ValueError:
        raise ValueError(f"has {text!r}, which is no address: {FORM}") from None


def read_hostfile(text: str, *, name: str) -> tuple[Host, ...]:
    """Hosts of a file as mpirun, DeepSpeed and MPICH take it: `HOST slots=4`, `HOST:4`; also port=N and user=NAME.

    Raises InputError with every line that is wrong.
    """
    found: list[Host] = []
    problems: list[str] = []
    for number, line in _lines(text):
        try:
            found.append(_of_line(line))
        except ValueError as error:
            problems.append(f"{name}, line {number}: {error}")
    if problems:
        raise InputError(problems)
    if not found:
        raise InputError(f"{name} names no host: one line for each, as `node1 slots=8`")
    return tuple(found)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.partition("#")[0].strip():
            yield number, words


def _of_line(line: str) -> Host:
    first, *words = line.split()
    host = parse_host(first)
    fields = dict(word.partition("=")[::2] for word in words)
    if unknown := [word for word in words if word.partition("=")[0] not in _FIELDS]:
        raise ValueError(f"{in_brief(repr(unknown[0]))} is not known: slots=N, port=N and user=NAME are")
    if "user" in fields and not re.fullmatch(_NAME, fields["user"]):
        raise ValueError(f"user={in_brief(repr(fields['user']))} is no name of a user")
    slots, port = _number(fields, "slots", 10**5), _number(fields, "port", 65535)
    return Host(name=host.name, user=fields.get("user") or host.user, port=port, slots=slots or host.slots)


def _number(fields: dict[str, str], name: str, most: int) -> int | None:
    word = fields.get(name)
    if word is None:
        return None
    if not re.fullmatch("[0-9]{1,6}", word) or not 0 < int(word) <= most:
        raise ValueError(f"{name}={in_brief(repr(word))} must be a number from 1 to {most}")
    return int(word)


def check_number(hosts: Sequence[Host], num_nodes: int) -> None:
    """Raise InputError unless there is a host for each node of a plan."""
    if len(hosts) != num_nodes:
        raise InputError(f"the plan has {num_nodes} nodes, and {len(hosts)} hosts are named: one for each node")


def slots_of(hosts: Sequence[Host]) -> tuple[int, ...] | None:
    """How many ranks each host gets, where that is said; raises InputError where it is said of some hosts only."""
    said = tuple(host.slots for host in hosts if host.slots is not None)
    if said and len(said) < len(hosts):
        some = ", ".join(f"{host.name}: {host.slots or 'not said'}" for host in hosts)
        raise InputError(f"the number of slots is said of some hosts only ({some}): say it of all, or of none")
    return said or None
