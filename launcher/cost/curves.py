"""Measured curves in place of the model: which one speaks for a group, and how it is carried to others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log2

from launcher.cluster.measured import Curve
from launcher.cost.network import Fabric, Group
from launcher.cost.traffic import SEND, SEND_BACK

Model = Callable[[str, Group, float], float]  # seconds by operation, group and bytes
OPERATION = {SEND: "send_recv", SEND_BACK: "send_recv"}
PASSES_IN_RINGS = ("all_reduce", "all_gather", "reduce_scatter")  # one says something about the others


def link_of(fabric: Fabric, group: Group) -> str:
    """The slowest link that a group crosses, as curves name it."""
    if group.nodes > 1:
        return "spine" if group.spine else "leaf"
    return "nvlink" if group.inside_domain and fabric.nvlink_bytes_per_s else "pcie"


def shape_of(curve: Curve) -> Group:
    """The group that a curve was measured with."""
    nodes = -(-curve.ranks // curve.per_node)
    domain = curve.per_node if curve.link == "nvlink" or nodes > 1 else 1
    return Group(curve.ranks, domain, curve.per_node, nodes, curve.link == "spine")


def chosen_curve(fabric: Fabric, operation: str, group: Group) -> Curve | None:
    """The curve that is nearest to this group: of its link, of its operation or else of one that passes alike, of as
    many ranks or about, with as many groups at once as a job has; of CPU ranks, as the node has room for, since a group
    alone finds cores idle. None where there is none.
    """
    link, wanted = link_of(fabric, group), OPERATION.get(operation, operation)
    alike = [wanted, *(PASSES_IN_RINGS if wanted in PASSES_IN_RINGS else ())]
    found = [curve for curve in fabric.curves if curve.link == link and curve.operation in alike]
    room = max(1, fabric.gpus_per_node // group.per_node) if fabric.on_cpu else None
    return min(found, key=lambda curve: _distance(curve, wanted, group, room), default=None)


def _distance(curve: Curve, operation: str, group: Group, room: int | None) -> tuple[float, ...]:
    ranks = abs(log2(curve.ranks / group.ranks)) + abs(log2(curve.per_node / group.per_node))
    return (curve.operation != operation, ranks, abs(log2(curve.groups / room)) if room else 0.0, -curve.groups)


def measured_s(fabric: Fabric, operation: str, group: Group, num_bytes: float, model: Model) -> float | None:
    """Seconds by the nearest curve; the model says how other groups and operations differ from what was measured."""
    curve = chosen_curve(fabric, operation, group)
    if curve is None or group.ranks < 2 or not num_bytes:
        return None
    seconds = curve.at(num_bytes)
    if group.nodes > 1:
        seconds /= fabric.job_fraction
    shape, wanted = shape_of(curve), OPERATION.get(operation, operation)
    if curve.operation == wanted and (shape.ranks, shape.per_node) == (group.ranks, group.per_node):
        return seconds
    reference = model(curve.operation if curve.operation != "send_recv" else operation, shape, num_bytes)
    return seconds * model(operation, group, num_bytes) / reference


def used(fabric: Fabric, asked: Sequence[tuple[str, Group]]) -> tuple[Curve, ...]:
    """The curves that speak for these operations and groups."""
    found = (chosen_curve(fabric, operation, group) for operation, group in asked)
    return tuple(dict.fromkeys(curve for curve in found if curve is not None))
