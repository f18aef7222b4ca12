"""Reads Slurm's view of a cluster: topology.conf or `scontrol show topology`, and node records.

Formats: https://slurm.schedmd.com/topology.conf.html, https://slurm.schedmd.com/slurm.conf.html (NodeName).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from launcher.cluster.hostlist import expand_hostlist
from launcher.errors import InputError

_FIELD = re.compile(r"(\w+)=(\S*)")


@dataclass(frozen=True)
class SlurmTopology:
    """Leaf switches (or blocks) and the nodes on each, and which switch holds which below the root.

    `notes` says what the text leaves open, as a node that stands under two leaves.
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


def read_slurm_topology(text: str) -> SlurmTopology:
    """The switches out of topology.conf or `scontrol show topology`; raises InputError for another text."""
    records = [_fields(line) for line in _lines(text)]
    switches = [record for record in records if "switchname" in record]
    blocks = [record for record in records if "blockname" in record]
    if not switches and not blocks:
        raise InputError("this is no Slurm topology: no line says SwitchName= or BlockName=")
    if blocks:
        leaves = {block["blockname"]: expand_hostlist(block.get("nodes", "")) for block in blocks}
        return SlurmTopology("block", leaves, {}, _notes(leaves))
    parents = {
        child: switch["switchname"] for switch in switches for child in expand_hostlist(switch.get("switches", ""))
    }
    inner = set(parents.values())
    leaves = {
        switch["switchname"]: expand_hostlist(switch.get("nodes", ""))
        for switch in switches
        if switch["switchname"] not in inner
    }
    return SlurmTopology("tree", leaves, parents, _notes(leaves))


def read_slurm_nodes(text: str) -> tuple[SlurmNodes, ...]:
    """Node records out of `scontrol show node -o`, or the NodeName lines of slurm.conf."""
    records = [record for record in map(_fields, _lines(text)) if next(iter(record), "") == "nodename"]
    if not records:
        raise InputError("no Slurm node record: no line starts with NodeName=")
    return tuple(_nodes(record) for record in records if record["nodename"] != "DEFAULT")


def _nodes(record: Mapping[str, str]) -> SlurmNodes:
    def number(*keys: str) -> int:
        values = [int(record[key]) for key in keys if record.get(key, "").isdigit()]
        return values[0] if values else 0

    num_gpus, gpu_type = read_gpu_gres(record.get("gres", ""))
    return SlurmNodes(
        names=expand_hostlist(record["nodename"]),
        cpus=number("cputot", "cpus"),
        sockets=number("sockets", "socketsperboard"),
        cores_per_socket=number("corespersocket"),
        threads_per_core=number("threadspercore"),
        memory_mib=number("realmemory"),
        num_gpus=num_gpus,
        gpu_type=gpu_type,
        state=record.get("state", "unknown").lower(),
    )


def read_gpu_gres(gres: str) -> tuple[int, str | None]:
    """(GPUs, type) of a Gres value: `gpu:a100:8(S:0-1)` → (8, a100), `gpu:8` → (8, None), `` → (0, None)."""
    total, kind = 0, None
    for item in re.sub(r"\([^)]*\)", "", gres).split(","):
        fields = item.split(":")
        if fields[0] != "gpu":
            continue
        total += int(fields[-1]) if fields[-1].isdigit() else 1
        kind = fields[1] if len(fields) > 1 and not fields[1].isdigit() else kind
    return total, kind


def _fields(line: str) -> dict[str, str]:
    """key=value words of a line; Slurm's keys know no case."""
    return {key.lower(): value for key, value in _FIELD.findall(line)}


def _lines(text: str) -> list[str]:
    """Lines without comments, those that end in a backslash joined with the next."""
    joined = re.sub(r"\\\n", " ", text)
    return [line for line in (line.partition("#")[0].strip() for line in joined.splitlines()) if line]


def _notes(leaves: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    places: dict[str, list[str]] = {}
    for leaf, nodes in leaves.items():
        for node in nodes:
            places.setdefault(node, []).append(leaf)
    return tuple(
        f"node {node} stands under {' and '.join(where)}: its leaf is unknown"
        for node, where in places.items()
        if len(where) > 1
    )
