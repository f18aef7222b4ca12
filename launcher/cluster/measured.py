"""What was measured on a cluster: the keys of `cluster.measured.*`, which `launcher calibrate` writes."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.schema import key

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
LINKS = ("nvlink", "pcie", "leaf", "spine")
EXAMPLE = "[{operation: all_reduce, link: nvlink, ranks: 8, bytes: [1048576], time_us: [102]}]"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Seconds of one collective by message size, over groups of one shape.

    `bytes` as nccl-tests counts them; `groups`: how many such groups ran at once; `error`: mean distance of the points
    from latency + bytes / rate, as a share. On CPUs the seconds are those that a rank uses of a core.
    """

    operation: str
    link: str
    ranks: int
    per_node: int
    groups: int
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    error: float = 0.0

    def at(self, num_bytes: float) -> float:
        """Straight between the points; below the first as long as that, beyond the last at its rate."""
        if num_bytes <= self.sizes[0]:
            return self.seconds[0]
        if num_bytes >= self.sizes[-1]:
            return self.seconds[-1] * num_bytes / self.sizes[-1]
        i = bisect_right(self.sizes, num_bytes) - 1
        share = (num_bytes - self.sizes[i]) / (self.sizes[i + 1] - self.sizes[i])
        return self.seconds[i] + share * (self.seconds[i + 1] - self.seconds[i])


def _curves(value: Any) -> tuple[Curve, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of curves, as {EXAMPLE}")
    return tuple(_curve(item, number) for number, item in enumerate(value, 1))


def _curve(item: Any, number: int) -> Curve:
    keys = ("operation", "link", "ranks", "per_node", "groups", "bytes", "time_us", "error")
    if not isinstance(item, Mapping) or not {"operation", "link", "ranks", "bytes", "time_us"} <= set(item):
        raise ValueError(f"has no whole curve as its entry {number}: each is as {EXAMPLE}")
    if unknown := [str(name) for name in item if name not in keys]:
        raise ValueError(f"has {unknown[0]} in entry {number}, and a curve has {', '.join(keys)}")
    for name, known in (("operation", OPERATIONS), ("link", LINKS)):
        if item[name] not in known:
            raise ValueError(f"has {name}: {item[name]} in entry {number}, which is not one of {', '.join(known)}")
    ranks = item["ranks"]
    counts = {"ranks": ranks, "per_node": item.get("per_node", ranks), "groups": item.get("groups", 1)}
    if not all(_is_number(count, int) and count > 0 for count in counts.values()) or counts["per_node"] > ranks:
        raise ValueError(f"has {counts} in entry {number}: they are whole numbers above 0, per_node at most ranks")
    sizes, times, error = item["bytes"], item["time_us"], item.get("error", 0.0)
    lists = isinstance(sizes, list | tuple) and isinstance(times, list | tuple) and len(sizes) == len(times) > 0
    if not lists or not all(_is_number(x, int | float) and 0 < x < 1e18 for x in (*sizes, *times)):
        raise ValueError(f"needs as many time_us as bytes in entry {number}, numbers above 0")
    if list(sizes) != sorted(set(sizes)) or not _is_number(error, int | float) or not 0 <= error < 10:
        raise ValueError(f"needs bytes that rise in entry {number}, and an error from 0 to 10")
    seconds = tuple(float(time) / 1e6 for time in times)
    return Curve(
        operation=item["operation"], link=item["link"], **counts, sizes=tuple(map(int, sizes)), seconds=seconds,
        error=float(error),
    )  # fmt: skip


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class EngineSeconds:
    """Core seconds of our torch engine on CPU ranks, in addition to products, memory and collectives."""

    layer_s: float | None = key(
        None, name="layer_ms", scale=1e-3, unit="ms", above=0,
        meaning="operators of a layer, forward and backward, of a micro-batch",
    )  # fmt: skip
    micro_batch_s: float | None = key(
        None,
        name="micro_batch_ms",
        scale=1e-3,
        unit="ms",
        minimum=0,
        meaning="embedding, head, loss and schedule of a rank that has all of them",
    )
    step_s: float | None = key(
        None, name="step_ms", scale=1e-3, unit="ms", minimum=0, meaning="batch, gradient norm and optimizer"
    )
    unit_s: float | None = key(
        None, name="unit_ms", scale=1e-3, unit="ms", minimum=0,
        meaning="bookkeeping of one sharded unit (a layer, or what is around the layers) each time that it is gathered "
        "or reduced, or that a micro-batch passes it",
    )  # fmt: skip
    call_s: float | None = key(
        None, name="call_ms", scale=1e-3, unit="ms", minimum=0,
        meaning="a collective's call within a step, in addition to what it takes back to back, for each rank more than "
        "one on a core: ranks come from their work at different times, wait, and change places",
    )  # fmt: skip
    element_s: float | None = key(
        None, name="element_ns", scale=1e-9, unit="ns", minimum=0,
        meaning="operators between a layer's products, for each element of its hidden states, forward and backward, in "
        "addition to what their bytes take through memory",
    )  # fmt: skip
    byte_s: float | None = key(
        None, name="byte_ns", scale=1e-9, unit="ns", minimum=0,
        meaning="a byte of a collective's buffer within a step, in addition to what it takes back to back, where the "
        "buffer stays in a core's cache",
    )  # fmt: skip
    idle: float | None = key(
        None, unit="1", minimum=0, below=100,
        meaning="of a rank's own work on the longest chain, the share in which other cores find none: 1 is Graham's "
        "bound, 0 where other ranks always have work",
    )  # fmt: skip
    chain: float | None = key(
        None, unit="1", minimum=0, below=100,
        meaning="the same of its collectives, over their core seconds: more than 1, as ranks hand data on in turn, "
        "where nothing else has work in between",
    )  # fmt: skip
    error: float = key(
        0.0, unit="1", minimum=0, below=10, meaning="mean distance of measured steps from what these say, as a share"
    )


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Measurements that the planner prefers to datasheets and constants."""

    date: str | None = key(None, example="'2026-11-29'", meaning="day of the measurement")
    hosts: tuple[str, ...] = key((), unit="hosts", example="[node1,node2]", meaning="hosts that were measured")
    versions: Mapping[str, str] = key({}, example="{torch: 2.13.0}", meaning="software that measured")
    command: str | None = key(None, meaning="command that wrote these keys")
    collectives: tuple[Curve, ...] = key(
        (), convert=_curves, example=EXAMPLE,
        meaning="seconds of collectives by operation, slowest link, group and message size; bytes as nccl-tests counts "
        "them, groups is how many ran at once, per_node how many ranks of a group are on one node",
    )  # fmt: skip
    checkpoint_write: Mapping[str, float] = key(
        {}, name="checkpoint_write_gbytes_per_s", scale=1e9, unit="GB/s", above=0, example="{n1: 0.8, n8: 2.5}",
        meaning="rate of all writers together into the run folder's file system, by number of writers",
    )  # fmt: skip
    checkpoint_read: Mapping[str, float] = key(
        {}, name="checkpoint_read_gbytes_per_s", scale=1e9, unit="GB/s", above=0, example="{n1: 1, n8: 4}",
        meaning="the same of all readers",
    )  # fmt: skip
    engine: EngineSeconds = key(meaning="our torch engine on CPU ranks")

    def problems(self) -> list[str]:
        """Return names in rates of checkpoints that are no number of writers, as n8."""
        return [
            f"cluster.measured.{name}_gbytes_per_s has {writers}: name the number of writers as n8"
            for name in ("checkpoint_write", "checkpoint_read")
            for writers in getattr(self, name)
            if not re.fullmatch(r"n[1-9]\d{0,6}", writers)
        ]

    def __bool__(self) -> bool:
        """Whether anything was measured."""
        return bool(self.collectives or self.checkpoint_write or self.checkpoint_read or self.engine.layer_s)


NOTHING = Measurements(engine=EngineSeconds())
