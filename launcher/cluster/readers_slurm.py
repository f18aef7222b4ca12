"""Reads Slurm's view of a cluster: topology.conf or `scontrol show topology`, and node records.

Formats: https://slurm.schedmd.com/topology.conf.html, https://slurm.schedmd.com/slurm.conf.html (NodeName).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from launcher.cluster.hostlist import MAX_HOSTS, expand_hostlist
from launcher.cluster.plain_yaml import plain_yaml
from launcher.errors import InputError
from launcher.text import bounded, printable, whole_number

_FIELD = re.compile(r"(\w{1,80})=(\S*)")
# A GRES type that is a MIG profile, as Slurm's NVML plugin names it (a100_1g.10gb) or alone.
_SLICE = re.compile(r"(?:[\w-]{1,60}_)?([0-9]{1,2}g\.[0-9]{1,4}gb(?:[+-][a-z.]{1,12})?)")
MOST_CHARACTERS = 64 * 2**20  # a node record has about 1000
MOST_NAMES = 4 * MAX_HOSTS  # in all records together


@dataclass(frozen=True)
class SlurmTopology:
    """Leaf switches (or blocks) and the nodes on each, and which switch holds which below the root.

    `notes` says what the text leaves open, such as a node under two leaves.
    """

    kind: str  # tree | block
    leaves: Mapping[str, tuple[str, ...]]
    parents: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def leaf_of(self, node: str) -> str | None:
        """The leaf of a node; None where the topology names no or several leaves for it."""
        found = self._places.get(node, ())
        return found[0] if len(found) == 1 else None

    @cached_property
    def pods(self) -> dict[str, int]:
        """Switch over leaves → the nodes below it, where a third tier joins such switches; else empty."""
        found: dict[str, int] = {}
        for leaf, nodes in self.leaves.items():
            above = self.parents.get(leaf)
            if above is not None and above in self.parents:
                found[above] = found.get(above, 0) + len(nodes)
        return found

    @cached_property
    def _places(self) -> dict[str, list[str]]:
        """Node → every leaf that names it."""
        found: dict[str, list[str]] = {}
        for leaf, nodes in self.leaves.items():
            for node in dict.fromkeys(nodes):
                found.setdefault(node, []).append(leaf)
        return found

    @property
    def nodes_per_leaf(self) -> int:
        """Nodes of the largest leaf."""
        return max((len(nodes) for nodes in self.leaves.values()), default=0)


@dataclass(frozen=True)
class GresGpus:
    """GPUs of some nodes as gres.conf lists them, or their MIG slices; `nodes` is empty where the line holds for every
    node. `links`: NVLinks between each two, where the lines say them of all.
    """

    nodes: tuple[str, ...]
    type: str | None
    count: int
    cpus: tuple[str, ...] = ()  # near each, where the lines say it
    links: tuple[tuple[int, ...], ...] = ()

    @property
    def profile(self) -> str | None:
        """The MIG profile, where these are slices."""
        match = _SLICE.fullmatch(self.type or "")
        return match[1] if match else None


@dataclass(frozen=True)
class SlurmNodes:
    """Nodes that one record describes; 0 or None where it says nothing."""

    names: tuple[str, ...]
    cpus: int
    sockets: int
    cores_per_socket: int
    threads_per_core: int
    memory_mib: int
    num_gpus: int
    gpu_type: str | None
    state: str
    slices: Mapping[str, int] = field(default_factory=dict)  # MIG profile → how many


def read_slurm_topology(text: str) -> SlurmTopology:
    """The switches out of topology.conf or .yaml, or `scontrol show topology`; raises InputError for another text."""
    if re.search(r"^[ \t-]*topology:", text[:MOST_CHARACTERS], flags=re.MULTILINE):
        return _yaml_topology(text)
    records = [_fields(line) for line in _lines(text)]
    switches = [record for record in records if "switchname" in record]
    blocks = [record for record in records if "blockname" in record]
    if not switches and not blocks:
        raise InputError("this is no Slurm topology: no line says SwitchName= or BlockName=")
    if blocks:
        leaves = _expanded((block["blockname"], block.get("nodes", "")) for block in blocks)
        return SlurmTopology("block", leaves, {}, _notes(leaves))
    below = _expanded((switch["switchname"], switch.get("switches", "")) for switch in switches)
    parents = {child: switch for switch, children in below.items() for child in children}
    inner = set(parents.values())
    on_leaf = [switch for switch in switches if switch["switchname"] not in inner]
    leaves = _expanded((switch["switchname"], switch.get("nodes", "")) for switch in on_leaf)
    return SlurmTopology("tree", leaves, parents, _notes(leaves))


def _yaml_topology(text: str) -> SlurmTopology:
    """The first tree or block of topology.yaml: https://slurm.schedmd.com/topology.yaml.html"""
    data = plain_yaml(bounded(text, "Slurm's", most=2**20), "a topology.yaml of Slurm")
    for entry in data if isinstance(data, list) else [data]:
        for kind, names, below in (("tree", "switches", "switch"), ("block", "blocks", "block")):
            within = entry.get(kind) if isinstance(entry, dict) else None
            records = within.get(names) if isinstance(within, dict) else None
            if isinstance(records, list):
                found = [record for record in records if isinstance(record, dict)]
                lines = [_as_line(record, below) for record in found]
                return read_slurm_topology("\n".join(lines))
    raise InputError("this is no topology.yaml of Slurm: it has neither tree: switches: nor block: blocks:")


def _as_line(record: Mapping[str, Any], below: str) -> str:
    """A record of topology.yaml as topology.conf writes it."""
    words = {f"{below.capitalize()}Name": record.get(below), "Nodes": record.get("nodes")}
    words["Switches"] = record.get("children")
    return " ".join(f"{key}={value}" for key, value in words.items() if isinstance(value, str) and " " not in value)


def read_gres(text: str) -> tuple[GresGpus, ...]:
    """The GPUs of gres.conf, by nodes and type; raises InputError for another text or a template."""
    if "{%" in text or "{{" in text:
        raise InputError("this gres.conf is a template: give the file that it makes, or `scontrol show node -o`")
    records = [record for record in map(_fields, _lines(text)) if record.get("name", "").lower() == "gpu"]
    if not records:
        raise InputError("this is no gres.conf with GPUs: no line says Name=gpu")
    found: dict[tuple[str, str | None], list[str]] = {}
    links: dict[tuple[str, str | None], list[tuple[int, ...]]] = {}
    for record in records:
        count = whole_number(record.get("count"))
        files = expand_hostlist(record.get("file", "")) if "[" in record.get("file", "") else (record.get("file", ""),)
        cpus = record.get("cpus") or record.get("cores") or ""
        kind = printable(record["type"]) if record.get("type") else None
        which = record.get("nodename", ""), kind
        found.setdefault(which, []).extend([cpus] * min(count or len(files), MAX_HOSTS))
        links.setdefault(which, []).append(tuple(map(int, re.findall(r"-?[0-9]{1,3}", record.get("links", "")))))
    return tuple(
        GresGpus(
            expand_hostlist(nodes),
            kind,
            len(cpus),
            tuple(map(printable, cpus)) if any(cpus) else (),
            tuple(links[nodes, kind]) if _is_square(links[nodes, kind], len(cpus)) else (),
        )
        for (nodes, kind), cpus in found.items()
    )


def _is_square(links: Sequence[Sequence[int]], count: int) -> bool:
    """Whether each GPU has a line of its own, which says its links to all, -1 at itself."""
    return len(links) == count > 1 and all(len(row) == count and row[i] == -1 for i, row in enumerate(links))


def _expanded(expressions: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Name of a record → the names in its node list; raises InputError where they are too many together."""
    found: dict[str, tuple[str, ...]] = {}
    left = MOST_NAMES
    for name, expression in expressions:
        found[name] = expand_hostlist(expression)
        left -= len(found[name])
        if left < 0:
            raise InputError(f"Slurm's records name more than {MOST_NAMES} nodes: check the bounds of their node lists")
    return found


def read_slurm_nodes(text: str) -> tuple[SlurmNodes, ...]:
    """Node records out of `scontrol show node -o`, or the NodeName lines of slurm.conf."""
    records = [record for record in map(_fields, _lines(text)) if next(iter(record), "") == "nodename"]
    if not records:
        raise InputError("no Slurm node record: no line starts with NodeName=")
    records = [record for record in records if record["nodename"] != "DEFAULT"]
    names = _expanded((str(index), record["nodename"]) for index, record in enumerate(records))
    return tuple(_nodes(record, names[str(index)]) for index, record in enumerate(records))


def _nodes(record: Mapping[str, str], names: tuple[str, ...]) -> SlurmNodes:
    def number(*keys: str) -> int:
        values = [number for key in keys if (number := whole_number(record.get(key))) is not None]
        return values[0] if values else 0

    num_gpus, gpu_type = read_gpu_gres(record.get("gres", ""))
    slices = read_mig_gres(record.get("gres", ""))
    return SlurmNodes(
        names=names,
        cpus=number("cputot", "cpus"),
        sockets=number("sockets", "socketsperboard"),
        cores_per_socket=number("corespersocket"),
        threads_per_core=number("threadspercore"),
        memory_mib=number("realmemory"),
        num_gpus=num_gpus - sum(slices.values()),
        gpu_type=None if gpu_type is not None and _SLICE.fullmatch(gpu_type) else gpu_type,
        state=printable(record.get("state", "unknown").lower()),
        slices=slices,
    )


def read_gpu_gres(gres: str) -> tuple[int, str | None]:
    """(GPUs, type) of a Gres value: `gpu:a100:8(S:0-1)` → (8, a100), `gpu:8` → (8, None), `` → (0, None). MIG slices
    count, as Slurm hands them out.
    """
    found = list(_gres(gres))
    return sum(count for _, count in found), next((kind for kind, _ in reversed(found) if kind), None)


def read_mig_gres(gres: str) -> dict[str, int]:
    """MIG profile → slices, of a Gres value: `gpu:1g.10gb:14,gpu:a100:6` → {1g.10gb: 14}."""
    found: dict[str, int] = {}
    for kind, count in _gres(gres):
        if kind is not None and (match := _SLICE.fullmatch(kind)):
            found[match[1]] = found.get(match[1], 0) + count
    return found


def _gres(gres: str) -> Iterator[tuple[str | None, int]]:
    """(type, count) of each item of a Gres value that is of GPUs."""
    for item in re.sub(r"\([^()]*\)", "", bounded(gres, "a GRES value", most=10_000)).split(","):
        fields = item.split(":")
        if fields[0] == "gpu":
            count = whole_number(fields[-1])
            named = len(fields) > 1 and whole_number(fields[1]) is None
            yield printable(fields[1]) if named else None, 1 if count is None else count


def _fields(line: str) -> dict[str, str]:
    """key=value words of a line; Slurm's keys know no case."""
    return {key.lower(): value for key, value in _FIELD.findall(line)}


def _lines(text: str) -> list[str]:
    """Lines without comments, those that end in a backslash joined with the next."""
    joined = bounded(text, "Slurm's", most=MOST_CHARACTERS).replace("\\\n", " ")
    return [line for line in (line.partition("#")[0].strip() for line in joined.splitlines()) if line]


def _notes(leaves: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    places: dict[str, list[str]] = {}
    for leaf, nodes in leaves.items():
        for node in nodes:
            places.setdefault(node, []).append(leaf)
    return tuple(
        f"node {node} is under {printable(' and '.join(where))}: its leaf is unknown"
        for node, where in places.items()
        if len(where) > 1
    )
