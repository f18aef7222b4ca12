"""From measurements to the keys of a cluster file: curves, how well they fit, and what physics does not allow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.cluster.measured import Curve, EngineSeconds
from launcher.cluster.readers_nccl_tests import NcclTest
from launcher.cluster.shape import Cluster
from launcher.errors import InputError
from launcher.text import printable

FASTEST_S = 1e-7  # of any collective: light passes 30 m
SLACK = 1.02  # rounding of printed rates, clocks


@dataclass(frozen=True)
class Findings:
    """What measurements say about a cluster, in the units of its values."""

    curves: tuple[Curve, ...] = ()
    gemm_tflops: Mapping[str, float] = field(default_factory=dict)
    attention_tflops: Mapping[str, float] = field(default_factory=dict)
    copy_gbytes_per_s: float | None = None
    checkpoint_write: Mapping[str, float] = field(default_factory=dict)
    checkpoint_read: Mapping[str, float] = field(default_factory=dict)
    engine: EngineSeconds = field(default_factory=EngineSeconds)
    hosts: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    dates: tuple[str, ...] = ()

    def joined(self, newer: Findings) -> Findings:
        """Both; where both know something, the newer."""
        known = {_shape(curve): curve for curve in (*self.curves, *newer.curves)}
        return Findings(
            tuple(known.values()),
            {**self.gemm_tflops, **newer.gemm_tflops},
            {**self.attention_tflops, **newer.attention_tflops},
            newer.copy_gbytes_per_s or self.copy_gbytes_per_s,
            {**self.checkpoint_write, **newer.checkpoint_write},
            {**self.checkpoint_read, **newer.checkpoint_read},
            newer.engine if newer.engine.layer_s is not None else self.engine,
            tuple(dict.fromkeys((*self.hosts, *newer.hosts))),
            {**self.versions, **newer.versions},
            tuple(sorted({*self.dates, *newer.dates})),
        )


def _shape(curve: Curve) -> tuple[Any, ...]:
    return curve.operation, curve.link, curve.ranks, curve.per_node, curve.groups


def curve_of(
    points: Sequence[tuple[int, float]],
    *,
    operation: str,
    link: str,
    ranks: int,
    per_node: int | None = None,
    groups: int = 1,
) -> Curve:
    """A curve through points, of each size the middle one, with its distance from latency + bytes / rate."""
    by_size: dict[int, list[float]] = {}
    for size, taken in points:
        by_size.setdefault(size, []).append(taken)
    sizes = tuple(sorted(by_size))
    seconds = tuple(sorted(by_size[size])[len(by_size[size]) // 2] for size in sizes)
    curve = Curve(
        operation=operation, link=link, ranks=ranks, per_node=per_node or ranks, groups=groups, sizes=sizes,
        seconds=seconds,
    )  # fmt: skip
    return replace(curve, error=round(line_of(curve)[2], 4))


def line_of(curve: Curve) -> tuple[float, float, float]:
    """Latency (s), rate (bytes/s) and mean distance as a share: least squares of relative errors."""
    sizes, times = curve.sizes, curve.seconds
    if len(sizes) < 2:
        return times[0], float("inf"), 0.0
    weights = [1 / t**2 for t in times]
    total = sum(weights)
    mean_size = sum(w * s for w, s in zip(weights, sizes, strict=True)) / total
    mean_time = sum(w * t for w, t in zip(weights, times, strict=True)) / total
    spread = sum(w * (s - mean_size) ** 2 for w, s in zip(weights, sizes, strict=True))
    both = sum(w * (s - mean_size) * (t - mean_time) for w, s, t in zip(weights, sizes, times, strict=True))
    slope = max(0.0, both / spread)
    latency = max(0.0, mean_time - slope * mean_size)
    error = sum(abs(latency + slope * s - t) / t for s, t in zip(sizes, times, strict=True)) / len(sizes)
    return latency, 1 / slope if slope else float("inf"), error


def nccl_tests_curve(test: NcclTest, cluster: Cluster, *, operation: str | None, what: str) -> Curve:
    """The curve of one run of nccl-tests on this cluster; raises InputError where it does not say enough."""
    operation = test.operation or operation
    if operation is None:
        raise InputError(f"{what} does not name its collective: say it with operation=all_reduce (or all_gather, …)")
    if test.wrong:
        raise InputError(f"{what} has {test.wrong:g} wrong elements: a fabric that corrupts data is no measure")
    node = cluster.node
    ranks = len(test.hosts) or node.num_gpus
    per_node = test.per_node or ranks
    if per_node > node.num_gpus:
        raise InputError(
            f"{what} has {per_node} ranks on one host, and a node of {cluster.name} has {node.num_gpus}: give the "
            "cluster that was measured with cluster=NAME"
        )
    inside = "nvlink" if node.nvlink != "none" and per_node <= node.domain_size else "pcie"
    nodes = -(-ranks // per_node)
    leaf = "leaf" if nodes <= (cluster.nodes_per_leaf or nodes) else "spine"
    if cluster.nvlink_nodes > 1 and ranks <= cluster.domain_size:
        return curve_of(test.points, operation=operation, link="nvlink", ranks=ranks, per_node=ranks)
    link = inside if nodes == 1 else leaf
    return curve_of(test.points, operation=operation, link=link, ranks=ranks, per_node=per_node)


def impossible(findings: Findings, cluster: Cluster) -> list[str]:
    """What no such hardware can do: the measurement, or the description of the cluster, is wrong."""
    return [*_impossible_curves(findings.curves, cluster), *_impossible_rates(findings, cluster)]


def _impossible_curves(curves: Sequence[Curve], cluster: Cluster) -> Iterator[str]:
    node = cluster.node
    for curve in curves:
        name = f"{curve.operation} of {curve.ranks} ranks over {curve.link}"
        if min(curve.seconds) < FASTEST_S:
            yield f"{name} takes {min(curve.seconds) * 1e6:.3g} µs at best, and light needs longer: are these seconds?"
            continue
        limit, what = {
            "nvlink": (node.gpu.nvlink_bytes_per_s, "a GPU's NVLinks"),
            "pcie": (node.gpu.pcie_bytes_per_s, "PCIe"),
        }.get(curve.link, (node.num_nics * node.nic_bytes_per_s, "a node's NICs"))
        rate = max(
            crossing_bytes(curve, size, node.num_gpus) / time
            for size, time in zip(curve.sizes, curve.seconds, strict=True)
        )
        if limit and rate > SLACK * limit:
            yield (
                f"{name} moves {rate / 1e9:.4g} GB/s at least over {what}, which carry {limit / 1e9:.4g} GB/s as "
                f"{cluster.name} describes them: measured elsewhere, or described wrongly"
            )


def crossing_bytes(curve: Curve, size: float, num_gpus: int) -> float:
    """Bytes that must cross the slowest link one way, whatever the algorithm: of one GPU inside a node, of all GPUs
    of a node between nodes. A switch that adds up lets a GPU send its buffer once.
    """
    n, per_node = curve.ranks, curve.per_node
    if curve.link in ("nvlink", "pcie"):
        return {"all_reduce": 1.0, "send_recv": 1.0}.get(curve.operation, (n - 1) / n) * size
    away = (n - per_node) / n
    each = {"all_reduce": 1.0, "send_recv": 1.0, "all_to_all": per_node * away}
    return min(curve.groups, num_gpus // per_node) * each.get(curve.operation, away) * size


def _impossible_rates(findings: Findings, cluster: Cluster) -> Iterator[str]:
    gpu = cluster.node.gpu
    for name, rates in (("gemm", findings.gemm_tflops), ("attention", findings.attention_tflops)):
        for kind, rate in rates.items():
            peak = gpu.peak(kind) if name == "gemm" else max(gpu.peak_flops.values(), default=None)
            if peak and rate * 1e12 > SLACK * peak:
                yield f"{name} in {kind} at {rate:.4g} TFLOP/s is above the peak of {gpu.name}, {peak / 1e12:.4g}"
    copy = findings.copy_gbytes_per_s
    if copy and gpu.kind == "cuda" and copy * 1e9 > SLACK * gpu.hbm_bytes_per_s:
        yield f"a copy at {copy:.4g} GB/s is above the memory of {gpu.name}, {gpu.hbm_bytes_per_s / 1e9:.4g} GB/s"


def cluster_text(name: str, base: str, findings: Findings, *, command: str) -> str:
    """The cluster file: the described cluster, and what was measured on it."""
    on = f" on {', '.join(findings.hosts)}" if findings.hosts else ""
    lines = [
        f"# Measured{on} and written by: {printable(command, longest=400)}",
        f"# It starts from configs/cluster/{base}.yaml, which says what was not measured.",
        "defaults:",
        f"  - {base}",
        "  - _self_",
        f"name: {name}",
    ]
    gpu = {"gemm_tflops": findings.gemm_tflops, "attention_tflops": findings.attention_tflops}
    gpu_lines = [f"    {key}: {_flow(rates)}" for key, rates in gpu.items() if rates]
    if findings.copy_gbytes_per_s:
        gpu_lines.append(f"    copy_gbytes_per_s: {findings.copy_gbytes_per_s:g}")
    lines += ["node:", "  gpu:", *gpu_lines] if gpu_lines else []
    return "\n".join([*lines, *_measured_lines(findings, command)]) + "\n"


def _measured_lines(findings: Findings, command: str) -> Iterator[str]:
    yield "measured:"
    if findings.dates:
        yield f"  date: {json.dumps(findings.dates[-1])}"
    yield f"  hosts: {json.dumps(list(findings.hosts))}"
    yield f"  versions: {_flow(findings.versions)}"
    yield f"  command: {json.dumps(command)}"
    for key, rates in (("write", findings.checkpoint_write), ("read", findings.checkpoint_read)):
        if rates:
            yield f"  checkpoint_{key}_gbytes_per_s: {_flow(rates)}"
    if findings.engine.layer_s is not None:
        engine = findings.engine
        given = {name: getattr(engine, f"{name}_s") for name in ("layer", "micro_batch", "step", "unit", "call")}
        yield "  engine: # core seconds of our engine, fitted to steps of several layouts"
        yield from (f"    {name}_ms: {1e3 * value:.4g}" for name, value in given.items() if value is not None)
        given = {"element": engine.element_s, "byte": engine.byte_s}
        yield from (f"    {name}_ns: {1e9 * value:.4g}" for name, value in given.items() if value is not None)
        shares = {"idle": engine.idle, "chain": engine.chain}
        yield from (f"    {name}: {value:.3g}" for name, value in shares.items() if value is not None)
        yield f"    error: {engine.error:.3g}"
    if findings.curves:
        yield "  collectives:"
    for curve in findings.curves:
        latency, rate, error = line_of(curve)
        line = "no slope" if rate == float("inf") else f"{rate / 1e9:.4g} GB/s of its bytes"
        yield f"    # about {latency * 1e6:.4g} µs + {line}, mean distance {error:.1%}"
        yield f"    - operation: {curve.operation}"
        yield f"      link: {curve.link}"
        yield f"      ranks: {curve.ranks}"
        yield f"      per_node: {curve.per_node}"
        yield f"      groups: {curve.groups}"
        yield f"      bytes: {json.dumps(list(curve.sizes))}"
        yield f"      time_us: [{', '.join(f'{seconds * 1e6:.6g}' for seconds in curve.seconds)}]"
        yield f"      error: {curve.error:g}"


def _flow(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{json.dumps(str(name))}: {json.dumps(value)}" for name, value in values.items()) + "}"
