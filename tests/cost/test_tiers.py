"""Fabrics of more than leaves and a spine: NVLink between nodes, a third tier, unequal leaves, the rails of NICs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from shapes import cluster

from launcher.cluster import Cluster
from launcher.config.compose import load
from launcher.cost.collectives import all_gather_s, all_reduce_s, all_to_all_s, ring_bytes_per_s, send_s
from launcher.cost.constants import DEFAULT
from launcher.cost.network import Group, fabric_of, group_of, groups_of
from launcher.errors import InputError
from launcher.layout import Layout, Link, Placement, RankGrid
from launcher.units import MIB

RACKS = replace(cluster(nodes=12, domains=(4,)), nvlink_nodes=3, nodes_per_leaf=6)  # of twelve GPUs each
PODS = replace(cluster(nodes=16, domains=(4,), nodes_per_leaf=2), nodes_per_pod=8, core_oversubscription=4.0)
UNEVEN = replace(cluster(nodes=9, domains=(4,)), leaf_sizes=(4, 3, 2))
RAILS = replace(cluster(nodes=6, domains=(4,), rails=4, nodes_per_leaf=3), nodes_per_pod=3)
LAYOUTS = [
    Layout(tp=tp, pp=pp, dp=dp, axis_order=order)
    for tp, pp, dp, order in product(
        (1, 2, 3, 4, 6, 12), (1, 2, 3), (1, 2, 3, 4, 6), ("tp-cp-dp-pp", "tp-pp-cp-dp", "dp-tp-cp-pp")
    )
]


@pytest.mark.parametrize("on", [RACKS, PODS, UNEVEN, RAILS], ids=["racks", "pods", "uneven leaves", "rails"])
def test_a_groups_tiers_are_those_that_its_ranks_cross(on: Cluster) -> None:
    """Against every group of every axis, rank by rank."""
    for layout in (layout for layout in LAYOUTS if layout.world_size <= on.num_gpus):
        placement = Placement(on, RankGrid.of(layout))
        for axis in ("tp", "dp", "pp"):
            slowest = max(placement.slowest_link(group) for group in placement.grid.groups(axis))
            group = group_of(on, layout, axis)
            assert placement.axis_link(axis) is slowest, (layout, axis)
            assert (group.spine, group.core) == (slowest >= Link.SPINE, slowest is Link.CORE), (layout, axis, group)
            if group.ranks > 1:
                assert group.inside_domain == (slowest is Link.NVLINK), (layout, axis, group)


def test_nodes_that_nvlink_joins_are_one_to_collectives() -> None:
    fabric = fabric_of(RACKS, DEFAULT)
    rack = group_of(RACKS, Layout(tp=12, pp=1, dp=4), "tp")
    assert rack == Group(12, 12, 12, 1)
    apart = group_of(replace(RACKS, nvlink_nodes=1), Layout(tp=12, pp=1, dp=4), "tp")
    for collective in (all_reduce_s, all_gather_s, all_to_all_s):
        assert collective(fabric, rack, 256 * MIB) < 0.7 * collective(fabric, apart, 256 * MIB)
    whole = group_of(RACKS, Layout(tp=1, pp=1, dp=48), "dp")
    assert (whole.nodes, whole.per_node) == (4, 12)
    assert ring_bytes_per_s(fabric, whole) == pytest.approx(min(3 * fabric.node_bytes_per_s, 0.765 * 300e9))


def test_a_tensor_parallel_group_may_take_all_that_nvlink_joins() -> None:
    words = ["cluster=gb200_nvl72", "model=megatron_1t", "train.global_batch=72", "layout.pp=1", "layout.dp=1"]
    wide = load([*words, "cluster.num_nodes=8", "layout.tp=32"]).job.cluster
    assert wide.domain_size == 72
    layout = Layout(tp=32, pp=1, dp=1)
    assert Placement(wide, RankGrid.of(layout)).axis_link("tp") is Link.NVLINK
    assert groups_of(wide, layout).tp.nodes == 1


def test_traffic_between_pods_takes_what_the_third_tier_carries() -> None:
    fabric = fabric_of(PODS, DEFAULT)
    inside, between = (group_of(PODS, Layout(tp=4, pp=1, dp=dp), "dp") for dp in (8, 16))
    assert inside.spine and not inside.core and between.core
    assert ring_bytes_per_s(fabric, inside) == pytest.approx(4 * ring_bytes_per_s(fabric, between))
    slower = fabric_of(replace(PODS, oversubscription=8.0), DEFAULT)  # the spine may be the narrower one
    assert ring_bytes_per_s(slower, inside) == ring_bytes_per_s(slower, between)
    slow = send_s(fabric, between, 64 * MIB) - fabric.base_latency_s
    assert slow == pytest.approx(4 * (send_s(fabric, inside, 64 * MIB) - fabric.base_latency_s))


def test_a_gpus_rail_is_that_of_its_nic() -> None:
    words = ["cluster=dgx_a100_80g", "cluster.num_nodes=2", "cluster.node.num_nics=4", "cluster.rails=4"]
    plain, crossed = load(words), load([*words, "cluster.node.nic_of_gpu=[0,0,2,2,3,3,1,1]"])
    assert [plain.job.cluster.rail(rank) for rank in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [crossed.job.cluster.rail(rank) for rank in range(8)] == [0, 0, 2, 2, 3, 3, 1, 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster.node.nic_of_gpu=[0,1]"], r"nic_of_gpu says it of 2 GPUs, and a node has 8: .* set it to null"),
        (["cluster.node.nic_of_gpu=[0,1,2,3,4,5,6,8]"], r"names NIC 8, and a node has 8 \(0 to 7\)"),
        (["cluster.node.numa_of_gpu=[0]"], r"numa_of_gpu says it of 1 GPUs"),
        (["cluster.nvlink_nodes=2", "cluster.node.nvlink=direct"], r"nvlink_nodes=2 joins nodes that are one NVSwitch"),
        (["cluster.nvlink_nodes=2", "cluster.node.domain_size=4"], r"nvlink_nodes=2 joins nodes that are one NVSwitch"),
        (["cluster.leaf_sizes=[2,1]", "cluster.num_nodes=4"], r"leaf_sizes=\[2, 1\] holds 3 nodes, and there are 4"),
        (["cluster.nodes_per_pod=30"], r"nodes_per_pod=30 splits leaves of 20 nodes"),
        (["cluster.nodes_per_pod=5", "cluster.leaf_sizes=[3,3,4]"], r"splits leaves of unequal sizes"),
    ],
)
def test_tiers_and_nics_that_cannot_be_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(["cluster=dgx_a100_80g", *words])
