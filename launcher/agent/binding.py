"""Binds ranks to cores: launch.bind = auto | none | numa | cores.

numa: all cores of the GPU's NUMA node, by `nvidia-smi topo -m`. cores: an exclusive share of these; on a node without
GPUs a share of all. Hardware threads of a physical core stay together. auto: numa if the GPUs' NUMA nodes are known,
else none. Every rank sets its own affinity, and does not start if the kernel did not accept it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster.commands import Runner, run
from launcher.cluster.readers_topo import read_topo
from launcher.errors import InputError
from launcher.planner import Plan
from launcher.schema import AUTO
from launcher.text import whole_number

NONE, NUMA, CORES = "none", "numa", "cores"
_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Binding:
    """The cores of each local rank; empty: any core. `why_not`: why some ranks are not bound as requested."""

    cores: tuple[tuple[int, ...], ...]
    why_not: str = ""

    def of(self, local_rank: int) -> tuple[int, ...]:
        return self.cores[local_rank] if local_rank < len(self.cores) else ()

    def describe(self) -> str:
        """Return one line; empty if no rank is bound and none was requested."""
        bound = [f"{rank} on {ranges(cores)}" for rank, cores in enumerate(self.cores) if cores]
        parts = [f"cores of local ranks: {', '.join(bound)}"] if bound else []
        return "; ".join([*parts, *([self.why_not] if self.why_not else [])])


def bind(mode: str, *, allowed: Sequence[int], near: Sequence[frozenset[int]], siblings: Mapping[int, int]) -> Binding:
    """Choose the cores of each rank. `near`: for each local rank the cores near its GPU, empty if unknown.

    `siblings`: the physical core of each of `allowed`.
    """
    if mode == AUTO:
        mode = NUMA if all(near) else NONE
    free = tuple(() for _ in near)
    if mode == NONE:
        return Binding(free)
    wanted = [frozenset(allowed) & cores for cores in near]
    if mode == NUMA:
        unknown = [str(rank) for rank, cores in enumerate(wanted) if not cores]
        why = (
            f"launch.bind=numa: unknown which cores are near the GPU of local rank {', '.join(unknown)}"
            if unknown
            else ""
        )
        return Binding(tuple(tuple(sorted(cores)) for cores in wanted), why)
    shares = _shared([cores or frozenset(allowed) for cores in wanted], siblings)
    if all(shares):
        return Binding(shares)
    return Binding(free, f"launch.bind=cores: {len(allowed)} cores are too few for {len(near)} ranks: not bound")


def node_binding(plan: Plan, mode: str, *, num_ranks: int) -> Binding:
    """Choose the cores of each local rank of a plan on this machine."""
    node, ranks = plan.job.cluster.node, num_ranks
    allowed = sorted(os.sched_getaffinity(0))
    near = [frozenset[int]()] * ranks
    if node.gpu.kind == "cuda" and mode != NONE:
        near = near_gpus([gpu // node.slices_per_gpu for gpu in node.gpu_order[:ranks]], run)
    return bind(mode, allowed=allowed, near=near, siblings=read_siblings(allowed))


def _shared(wanted: Sequence[frozenset[int]], siblings: Mapping[int, int]) -> tuple[tuple[int, ...], ...]:
    """Divide cores that several ranks want into equal shares, in order."""
    found = []
    for rank, cores in enumerate(wanted):
        others = [other for other, theirs in enumerate(wanted) if theirs == cores]
        in_order = sorted(cores, key=lambda core: (siblings.get(core, core), core))
        size, place = len(in_order) // len(others), others.index(rank)
        found.append(tuple(sorted(in_order[place * size : (place + 1) * size])))
    return tuple(found)


def near_gpus(gpus: Sequence[int], run: Runner) -> list[frozenset[int]]:
    """Return the cores near each of these GPUs of this machine; empty if nvidia-smi does not say."""
    answer = run(("nvidia-smi", "topo", "-m"))
    try:
        affinity = read_topo(answer.text or "").cpu_affinity
    except InputError:
        affinity = ()
    return [core_list(affinity[gpu]) if gpu < len(affinity) else frozenset() for gpu in gpus]


def read_siblings(cores: Sequence[int], root: Path = _CPUS) -> dict[int, int]:
    """Map each core to the first hardware thread of its physical core."""
    found = {}
    for core in cores:
        try:
            text = (root / f"cpu{core}/topology/thread_siblings_list").read_text()
        except OSError:
            text = ""
        found[core] = min(core_list(text), default=core)
    return found


def core_list(text: str) -> frozenset[int]:
    """0-2,8 → {0, 1, 2, 8}; empty for any other text."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        begin, _, end = part.partition("-")
        first, last = whole_number(begin), whole_number(end or begin)
        if first is None or last is None:
            return frozenset()
        cores.update(range(first, last + 1))
    return frozenset(cores)


def ranges(cores: Sequence[int]) -> str:
    """The inverse of `core_list`."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and parts[-1][1] == core - 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
