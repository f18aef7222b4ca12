"""Time of collectives by message size, group shape and links.

Sizes are those of nccl-tests: the whole buffer of an all-reduce; the gathered (or not yet scattered) buffer of
all-gather and reduce-scatter; a rank's send buffer of all-to-all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from math import log2
from types import MappingProxyType

from launcher.cost.curves import measured_s
from launcher.cost.network import NVLINK_FRACTION, SEND_FRACTION, AxisGroups, Fabric, Group, ends_of
from launcher.cost.traffic import SEND, SEND_BACK, Message
from launcher.units import MIB

# Measured NCCL all-reduce on one DGX A100 (NVSwitch, 300 GB/s), in place, seconds at 1, 2, 4 … 1024 MiB for 2, 4 and 8
# GPUs: VIA-Research/vTrain, trace/a100 (MIT licence). Holds the switch from LL128 to Simple between 4 and 64 MiB that
# an alpha-beta line misses by up to 20 %.
TABLE_BYTES_PER_S = 300e9
ALL_REDUCE_S = {
    2: (45e-6, 51e-6, 60e-6, 87e-6, 129e-6, 229e-6, 404e-6, 766e-6, 1454e-6, 2833e-6, 5453e-6),
    4: (53e-6, 56e-6, 76e-6, 114e-6, 178e-6, 282e-6, 541e-6, 1001e-6, 1928e-6, 3720e-6, 7276e-6),
    8: (92e-6, 93e-6, 94e-6, 130e-6, 231e-6, 356e-6, 580e-6, 1166e-6, 2158e-6, 4188e-6, 8196e-6),
}
SMALL_FRACTION = 0.45  # of the 1 MiB time, for the smallest messages: 43.8 of 101.9 µs on 8 GPUs (stas00, nccl-tests)
SIZES = tuple(float(MIB << i) for i in range(11))


def all_reduce_s(fabric: Fabric, group: Group, num_bytes: float) -> float:
    """Seconds of an all-reduce of `num_bytes` over `group`."""
    if group.ranks < 2 or not num_bytes:
        return 0.0
    if group.inside_domain and fabric.nvlink_bytes_per_s:
        return _nvlink_all_reduce_s(fabric, group, num_bytes)
    ring = 2.0 * (group.ranks - 1) / group.ranks * num_bytes
    if group.nodes != 2:
        return latency_s(fabric, group) + ring / ring_bytes_per_s(fabric, group)
    # A tree over two nodes sends the buffer once each way, where the ring sends it almost twice: 78 GB/s busbw over
    # 50 GB/s of NICs on p4de (nccl#1576 explains; not to be extrapolated to more nodes).
    across = num_bytes / (nic_bytes_per_s(fabric, group, group.per_node) * nic_reach(fabric, group))
    return latency_s(fabric, group) + max(ring / local_bytes_per_s(fabric, group), across)


def all_gather_s(fabric: Fabric, group: Group, num_bytes: float) -> float:
    """Seconds of an all-gather to `num_bytes`, or of a reduce-scatter from it: one pass of an all-reduce's two, at more
    than half its time inside a node. Between nodes all are rings, but where an all-reduce over two is a tree.
    """
    if group.ranks < 2 or not num_bytes:
        return 0.0
    if group.nodes == 1:
        return fabric.gather_share * all_reduce_s(fabric, group, num_bytes)
    volume = (group.ranks - 1) / group.ranks * num_bytes
    return ring_latency_s(fabric, group) + volume / ring_bytes_per_s(fabric, group)


def all_to_all_s(fabric: Fabric, group: Group, num_bytes: float) -> float:
    """Seconds of an all-to-all of `num_bytes` per rank: what leaves the node is bound by the rank's share of the NICs.

    43.6 GB/s busbw for 16 ranks on two DGX A100 with 25 GB/s a GPU (mscclpp perf_ndmv4.jsonl).
    """
    if group.ranks < 2 or not num_bytes:
        return 0.0
    local = num_bytes * (group.per_node - 1) / group.ranks
    away = num_bytes * (group.ranks - group.per_node) / group.ranks
    links = fabric.nvlink_bytes_per_s * NVLINK_FRACTION if group.per_domain >= group.per_node else 0.0
    links *= min(1.0, group.pair_share * (group.per_node - 1))
    seconds = latency_s(fabric, group) + local / (links or fabric.pcie_bytes_per_s)
    if group.nodes == 1:
        return seconds
    # Ranks of other rails are reached through the spine, those of a rank's own through its leaf; with PXN all are.
    other_rails = 0.0 if fabric.pxn else (group.rails - 1) / group.rails
    elsewhere = group._replace(spine=True)
    kept, crossing = away * (1 - other_rails), away * other_rails
    return seconds + kept / nic_bytes_per_s(fabric, group, 1) + crossing / nic_bytes_per_s(fabric, elsewhere, 1)


def send_s(fabric: Fabric, group: Group, num_bytes: float) -> float:
    """Seconds to send `num_bytes` to the next rank of `group`, all ranks of a node sending at once."""
    if group.ranks < 2 or not num_bytes:
        return 0.0
    if group.nodes > 1:
        between = group._replace(spine=group.spine or group.rails > 1)  # the next rank's GPU is on another rail
        return fabric.base_latency_s + num_bytes / (fabric.send_lead * nic_bytes_per_s(fabric, between, 1))
    rate = fabric.nvlink_rate(2, group.pair_share) * NVLINK_FRACTION if group.inside_domain else 0.0
    return fabric.local_latency_s + num_bytes / (rate or fabric.pcie_bytes_per_s)


SECONDS: Mapping[str, Callable[[Fabric, Group, float], float]] = MappingProxyType(
    {
        "all_reduce": all_reduce_s,
        "all_gather": all_gather_s,
        "reduce_scatter": all_gather_s,
        "all_to_all": all_to_all_s,
        SEND: send_s,
        SEND_BACK: send_s,
    }
)


Price = Callable[[Message], float]  # seconds of a message, once


class Prices:
    """Seconds of messages on a fabric, each kept."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._kept: dict[tuple[Group, str, float], float] = {}

    def of(self, groups: AxisGroups) -> Price:
        """Seconds of a message of these groups."""

        def price(message: Message) -> float:
            group = _group_of(groups, message)
            key = (group, message.collective, message.num_bytes)
            seconds = self._kept.get(key)
            if seconds is None:
                seconds = self._kept[key] = message_s(self._fabric, group, message)
            return seconds

        return price

    def local_of(self, groups: AxisGroups) -> Price:
        """Seconds in which the bytes of a message of these groups would pass inside a node."""
        price = self.of(groups)
        return lambda message: local_s(self._fabric, groups, message, price(message))


def _group_of(groups: AxisGroups, message: Message) -> Group:
    group = groups.of(message.axis)
    return ends_of(group) if message.ranks < group.ranks else group  # a tied table's two ranks


def message_s(fabric: Fabric, group: Group, message: Message) -> float:
    """Seconds of a message of a group, once."""
    return collective_s(fabric, group, message.collective, message.num_bytes)


def collective_s(fabric: Fabric, group: Group, operation: str, num_bytes: float) -> float:
    """Seconds of a collective by the measured curve that is nearest, else by the model."""
    if fabric.curves:
        measured = measured_s(
            fabric, operation, group, num_bytes, lambda name, shape, size: SECONDS[name](fabric, shape, size)
        )
        if measured is not None:
            return measured
    return SECONDS[operation](fabric, group, num_bytes)


def latency_s(fabric: Fabric, group: Group) -> float:
    """Seconds of an empty collective: a tree over the nodes, a chain inside each."""
    if group.nodes == 1:
        return fabric.local_latency_s * (1 + log2(group.ranks))
    return fabric.base_latency_s + 2 * fabric.hop_latency_s * log2(group.nodes)


def ring_latency_s(fabric: Fabric, group: Group) -> float:
    """Seconds of an empty gather or scatter over nodes: NCCL has rings alone for them, which pass every rank."""
    inside = fabric.local_ring_hop_s * (group.ranks - group.nodes)
    return fabric.base_latency_s + inside + fabric.ring_hop_s * (group.nodes - 1)


def ring_bytes_per_s(fabric: Fabric, group: Group) -> float:
    """Bus bandwidth of NCCL's rings over the group: the slowest kind of link that they cross.

    Every GPU of a node is in some group of the same axis, and all of them communicate at once: a group has the share
    of the node's NICs that its ranks make of the node's GPUs.
    """
    local = local_bytes_per_s(fabric, group)
    if group.nodes == 1:
        return local
    across = nic_bytes_per_s(fabric, group, group.per_node) * nic_reach(fabric, group)
    return min(local, across) if group.per_node > 1 else across


def local_s(fabric: Fabric, groups: AxisGroups, message: Message, seconds: float) -> float:
    """Seconds in which the bytes of a message that takes `seconds` would pass inside a node: all of them on one node.

    Between nodes a rank sends and receives as many bytes through its own memory in more time, and latency moves none.
    """
    group = _group_of(groups, message)
    if message.axis in (
        "sdp",
        "rdp",
    ):  # as a share of all replicas' traffic: so the slowdown of shard groups was fitted
        waited = latency_s(fabric, group) if group.nodes > 1 else 0.0
        return max(0.0, seconds - waited) * _local_share(fabric, groups.replicas)
    if group.nodes == 1:
        return seconds
    passes = 2 if message.collective == "all_reduce" else 1
    volume = passes * (group.ranks - 1) / group.ranks * message.num_bytes
    return min(seconds, volume / local_bytes_per_s(fabric, group))


def _local_share(fabric: Fabric, group: Group) -> float:
    return min(1.0, ring_bytes_per_s(fabric, group) / local_bytes_per_s(fabric, group))


def local_bytes_per_s(fabric: Fabric, group: Group) -> float:
    """Bus bandwidth of the links inside a node: 235 of 300 GB/s on NVSwitch (stas00, nccl-tests); else PCIe."""
    inside = group.per_domain >= group.per_node
    return (
        fabric.nvlink_rate(group.per_domain, group.ring_share) * NVLINK_FRACTION
        if inside and fabric.nvlink_bytes_per_s
        else fabric.pcie_bytes_per_s
    )


def nic_bytes_per_s(fabric: Fabric, group: Group, ranks: int) -> float:
    """Return the share of a node's NICs for `ranks` of its GPUs, through spine and core if the group crosses them."""
    rate = fabric.node_bytes_per_s * ranks / fabric.gpus_per_node
    taper = max(fabric.oversubscription if group.spine else 1.0, fabric.core_oversubscription if group.core else 1.0)
    return rate / taper


def nic_reach(fabric: Fabric, group: Group) -> float:
    """Return the fraction of its share of a node's NICs that a group reaches: 1 with every GPU of the node,
    SEND_FRACTION with one, in between by the logarithm of the number of ranks.
    """
    if group.per_node >= fabric.gpus_per_node:
        return 1.0
    missing = 1.0 - log2(group.per_node) / log2(fabric.gpus_per_node)
    return float(SEND_FRACTION**missing)


def _nvlink_all_reduce_s(fabric: Fabric, group: Group, num_bytes: float) -> float:
    """From the measured table: a link that is x times as fast carries x times the bytes in the same time.

    The table was measured with one group. Where others share the node, bytes take longer, the start does not.
    """
    ranks = group.ranks
    size = num_bytes * TABLE_BYTES_PER_S / fabric.nvlink_rate(ranks, group.ring_share)
    alone = _table_s(ranks, size)
    if ranks >= fabric.gpus_together:
        return alone
    start = _table_s(ranks, min(size, SIZES[0]))
    return start + fabric.group_contention * (alone - start)


def _table_s(ranks: int, size: float) -> float:
    if ranks in ALL_REDUCE_S:
        return _interpolated(ALL_REDUCE_S[ranks], size)
    if ranks > 8:
        return _interpolated(ALL_REDUCE_S[8], size) * (2 * (ranks - 1) / ranks) / (2 * 7 / 8)
    low = 2 if ranks < 4 else 4
    weight = (ranks - low) / low
    return (1 - weight) * _interpolated(ALL_REDUCE_S[low], size) + weight * _interpolated(ALL_REDUCE_S[2 * low], size)


def _interpolated(times: tuple[float, ...], size: float) -> float:
    """Linear between measured sizes; beyond the last at its rate; below the first towards the latency floor."""
    if size <= SIZES[0]:
        return times[0] * (SMALL_FRACTION + (1 - SMALL_FRACTION) * size / SIZES[0])
    if size >= SIZES[-1]:
        return times[-1] * size / SIZES[-1]
    i = bisect_right(SIZES, size) - 1
    return times[i] + (times[i + 1] - times[i]) * (size - SIZES[i]) / (SIZES[i + 1] - SIZES[i])
