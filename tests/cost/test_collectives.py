"""Collectives: the measured table, nccl-tests' definitions, and which links bound a group."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import cluster, job, model

from launcher.cost import CostModel
from launcher.cost.collectives import (
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
    latency_s,
    ring_bytes_per_s,
    ring_latency_s,
    send_s,
)
from launcher.cost.constants import DEFAULT
from launcher.cost.network import Fabric, Group, fabric_of, group_of, groups_of, joined
from launcher.layout import Layout, Link, Placement, RankGrid
from launcher.units import MIB

DGX = fabric_of(cluster(nodes=16), DEFAULT)
ALONE = replace(DGX, group_contention=1.0)
NODE = {n: Group(n, n, n, 1) for n in range(2, 9)}

# VIA-Research/vTrain, trace/a100 (MIT licence): all-reduce on one DGX A100, GPUs, MiB, microseconds in place. Those
# of 3, 5, 6 and 7 GPUs are not in the model's table.
MEASURED = [
    (2, 1, 45), (2, 64, 404), (4, 16, 178), (4, 1024, 7276), (8, 4, 94), (8, 8, 130), (8, 128, 1166), (8, 1024, 8196),
    (3, 128, 929), (3, 512, 3466), (5, 64, 566), (5, 512, 3932), (6, 128, 1121), (6, 1024, 7888), (7, 64, 598),
    (7, 512, 4114),
]  # fmt: skip


@pytest.mark.parametrize(("ranks", "mib", "microseconds"), MEASURED)
def test_all_reduce_inside_a_node_takes_what_was_measured(ranks: int, mib: int, microseconds: float) -> None:
    assert all_reduce_s(ALONE, NODE[ranks], mib * MIB) == pytest.approx(microseconds * 1e-6, rel=0.06)


# All-to-all by the best kernels that are published: nodes, Gb/s of a NIC, bytes of a rank's buffer, seconds. MSCCL++ on
# Azure NDm A100 v4 (test/deploy/perf_ndmv4.jsonl); DeepEP on H800 (docs/legacy.md: 43, 58, 51 GB/s a NIC; 4096 tokens
# of 7168 in bf16, 8 copies, of which those to other nodes pass a NIC).
COPIES = 4096 * 7168 * 8 * 2
ALL_TO_ALL = [
    (1, 200, 2**30, 3.888e-3),
    (2, 200, 2**30, 23.07e-3),
    (2, 400, COPIES, COPIES / 2 / 43e9),
    (4, 400, COPIES, COPIES * 3 / 4 / 58e9),
    (8, 400, COPIES, COPIES * 7 / 8 / 51e9),
]


@pytest.mark.parametrize(("nodes", "gbps", "num_bytes", "seconds"), ALL_TO_ALL)
def test_an_all_to_all_is_no_faster_than_the_best_kernels_and_at_most_twice_as_slow(
    nodes: int, gbps: float, num_bytes: float, seconds: float
) -> None:
    on = cluster(nodes=nodes)
    fabric = fabric_of(replace(on, node=replace(on.node, nic_gbps=gbps)), DEFAULT)
    group = Group(8 * nodes, 8, 8, nodes)
    assert 1.0 < all_to_all_s(fabric, group, num_bytes) / seconds < 2.0


def test_groups_that_share_a_node_slow_each_other() -> None:
    assert all_reduce_s(DGX, NODE[2], 64 * MIB) > all_reduce_s(ALONE, NODE[2], 64 * MIB)
    assert all_reduce_s(DGX, NODE[8], 64 * MIB) == all_reduce_s(ALONE, NODE[8], 64 * MIB)
    assert all_reduce_s(DGX, NODE[2], MIB) == all_reduce_s(ALONE, NODE[2], MIB)  # the start takes no longer
    slower = [all_reduce_s(DGX, NODE[n], 1024 * MIB) / all_reduce_s(ALONE, NODE[n], 1024 * MIB) for n in (2, 4)]
    assert slower == pytest.approx([DEFAULT.group_contention] * 2, rel=0.01)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_an_a800_takes_as_long_as_an_a100_with_as_many_more_bytes(ranks: int) -> None:
    slower = replace(DGX, nvlink_bytes_per_s=200e9)
    assert all_reduce_s(slower, NODE[ranks], 200 * MIB) == pytest.approx(all_reduce_s(DGX, NODE[ranks], 300 * MIB))


def test_busbw_of_a_large_all_reduce_is_the_ring_rate() -> None:
    group, size = Group(64, 8, 8, 8), 64 * 1024 * MIB
    busbw = size / all_reduce_s(DGX, group, size) * 2 * 63 / 64  # nccl-tests' definition
    assert busbw == pytest.approx(ring_bytes_per_s(DGX, group), rel=0.001)
    gathered = size / all_gather_s(DGX, group, size) * 63 / 64
    assert gathered == pytest.approx(ring_bytes_per_s(DGX, group), rel=0.001)


@pytest.mark.parametrize(
    ("group", "share"),
    [(NODE[4], DEFAULT.gather_share), (NODE[8], DEFAULT.gather_share), (Group(64, 8, 8, 8), 0.5)],
    ids=["part of a node", "node", "nodes"],
)
def test_a_gather_takes_its_share_of_an_all_reduce(group: Group, share: float) -> None:
    whole, gathered = (collective(DGX, group, 64 * 1024 * MIB) for collective in (all_reduce_s, all_gather_s))
    assert gathered == pytest.approx(share * whole, rel=0.001)


def test_over_two_nodes_the_tree_halves_what_the_nics_carry() -> None:
    slow = replace(DGX, node_bytes_per_s=50e9)
    two, four = Group(16, 8, 8, 2), Group(32, 8, 8, 4)
    size = 4096 * MIB
    assert size / all_reduce_s(slow, two, size) == pytest.approx(50e9, rel=0.01)
    assert size / all_reduce_s(slow, four, size) == pytest.approx(50e9 / (2 * 31 / 32), rel=0.01)


def test_groups_of_a_node_share_its_nics() -> None:
    whole = ring_bytes_per_s(DGX, Group(64, 8, 8, 8))
    reached = [ring_bytes_per_s(DGX, Group(8 * ranks, ranks, ranks, 8)) * 8 / ranks / whole for ranks in (1, 2, 4, 8)]
    assert reached[0] == pytest.approx(19.3 / 25 / 0.94, rel=0.01)  # FlagPerf: one GPU to one, of the line rate
    assert reached == sorted(reached)
    assert reached[-1] == 1


def test_an_oversubscribed_spine_slows_only_groups_that_cross_it() -> None:
    fabric = replace(DGX, oversubscription=4.0)
    inside, across = Group(4, 1, 1, 4), Group(4, 1, 1, 4, spine=True)
    assert ring_bytes_per_s(fabric, inside) == pytest.approx(4 * ring_bytes_per_s(fabric, across))


def test_on_rails_only_what_changes_rails_crosses_an_oversubscribed_spine() -> None:
    """Two nodes of eight GPUs, a leaf switch to each rail."""
    fabric, size = replace(DGX, oversubscription=4.0, pxn=False), 256 * MIB
    plain, railed = (groups_of(cluster(nodes=2, rails=rails), Layout(tp=1, pp=1, dp=16, ep=16)) for rails in (1, 8))
    assert plain.ep == Group(16, 8, 8, 2) and railed.ep == Group(16, 8, 8, 2, rails=8)
    assert all_reduce_s(fabric, railed.dp, size) == all_reduce_s(fabric, plain.dp, size)  # a ring for each rail
    across = all_to_all_s(fabric, railed.ep, size) - all_to_all_s(fabric, plain.ep, size)
    half = size / 2  # of a rank's buffer goes to the other node, seven eighths of it to other rails
    assert across == pytest.approx(7 / 8 * half * (4 - 1) / (fabric.node_bytes_per_s / 8))
    with_pxn = replace(fabric, pxn=True)  # over NVLink to a GPU of the rail first
    assert all_to_all_s(with_pxn, railed.ep, size) == all_to_all_s(fabric, plain.ep, size)
    sent = [groups_of(cluster(nodes=2, rails=rails), Layout(tp=4, pp=4, dp=1)).pp for rails in (1, 8)]
    slow, fast = send_s(fabric, sent[1], size), send_s(fabric, sent[0], size)
    assert slow - fabric.base_latency_s == pytest.approx(4 * (fast - fabric.base_latency_s))  # GPU 4 to 0, 5 to 1, …


def test_pcie_bounds_a_group_across_domains_of_a_node() -> None:
    bridged = fabric_of(cluster(domains=(2, 2)), DEFAULT)
    size = 1024 * MIB
    pair, four = all_reduce_s(bridged, Group(2, 2, 2, 1), size), all_reduce_s(bridged, Group(4, 2, 4, 1), size)
    assert four > 8 * pair


@given(
    st.sampled_from([NODE[2], NODE[8], Group(4, 2, 4, 1), Group(16, 8, 8, 2), Group(32, 8, 8, 4), Group(8, 1, 1, 8)]),
    st.floats(1e3, 1e10),
    st.sampled_from(["nvlink_bytes_per_s", "pcie_bytes_per_s", "node_bytes_per_s"]),
    st.floats(1.0, 10.0),
)
@settings(deadline=None)
def test_more_bytes_take_longer_and_faster_links_never_do(group: Group, size: float, link: str, faster: float) -> None:
    better: Fabric = replace(DGX, **{link: getattr(DGX, link) * faster})
    for collective in (all_reduce_s, all_gather_s, all_to_all_s, send_s):
        assert collective(DGX, group, 2 * size) >= collective(DGX, group, size) > 0
        assert collective(better, group, size) <= collective(DGX, group, size) * (1 + 1e-9)


@given(
    tp=st.sampled_from([1, 2, 4, 8, 16]), cp=st.sampled_from([1, 2]), dp=st.sampled_from([1, 2, 4]),
    pp=st.sampled_from([1, 2, 3]), domains=st.sampled_from([(8,), (4, 4), (2, 2), (1, 1)]),
    order=st.sampled_from(["tp-cp-dp-pp", "tp-pp-dp-cp", "dp-tp-cp-pp"]), rails=st.sampled_from([1, 2, 8]),
)  # fmt: skip
@settings(deadline=None)
def test_a_groups_shape_agrees_with_the_placement_of_its_ranks(
    tp: int, cp: int, dp: int, pp: int, domains: tuple[int, ...], order: str, rails: int
) -> None:
    layout = Layout(tp=tp, cp=cp, dp=dp, pp=pp, axis_order=order)
    size = sum(domains)
    on = cluster(nodes=-(-layout.world_size // size), domains=domains, nodes_per_leaf=2, rails=rails)
    placement = Placement(on, RankGrid.of(layout))
    for axis in ("tp", "cp", "dp", "pp"):
        group = group_of(on, layout, axis)
        spread = max(len({placement.slot(rank).node for rank in ranks}) for ranks in placement.grid.groups(axis))
        assert group.ranks == layout.degree(axis)
        assert group.nodes == spread, (axis, group)
        assert group.spine == (placement.axis_link(axis) == Link.SPINE), (axis, group)


@pytest.mark.parametrize("order", ["tp-cp-dp-pp", "tp-dp-cp-pp", "tp-pp-cp-dp"])
@pytest.mark.parametrize("cp", [2, 4, 8])
def test_the_ranks_that_data_and_context_parallelism_span_are_those_of_one_axis(cp: int, order: str) -> None:
    """Gradients are reduced over dp × cp: the group of a layout with this product as dp."""
    on = cluster(nodes=8, nodes_per_leaf=4)
    apart = groups_of(on, Layout(tp=1, pp=2, dp=32 // cp, cp=cp, axis_order=order))
    together = groups_of(on, Layout(tp=1, pp=2, dp=32, axis_order=order))
    assert joined(apart.dp, apart.cp) == together.dp


def test_a_gather_over_nodes_waits_for_every_rank_and_an_all_reduce_for_the_tree() -> None:
    few, many = (fabric_of(replace(cluster(nodes=nodes)), DEFAULT) for nodes in (4, 64))
    small, large = Group(32, 8, 8, 4), Group(512, 8, 8, 64)
    # 28 and 448 steps over NVLink, 3 and 63 between nodes (NCCL's tuning.cc)
    assert ring_latency_s(many, large) - ring_latency_s(few, small) == pytest.approx(420 * 3.4e-6 + 60 * 14e-6)
    assert latency_s(many, large) - latency_s(few, small) == pytest.approx(2 * 4 * 7e-6)
    assert all_gather_s(many, large, 1024.0) > ring_latency_s(many, large)


def test_zero3_gathers_in_the_pieces_of_its_software_and_hides_them_or_not() -> None:
    """175B without model parallelism, DeepSpeed of 2021: 44 TFLOP/s of 312 on 1,536 GPUs (Narayanan et al. 2021)."""
    layout = Layout(tp=1, pp=1, dp=1536, zero_stage=3, recompute="full")
    of = model(hidden=12288, layers=96, heads=96)
    found = {
        year: CostModel(
            job(on=cluster(nodes=192), of=of, global_batch=1536, stack="megatron_deepspeed", year=year)
        ).estimate(layout)
        for year in (2021, 2023)
    }
    old, new = found[2021], found[2023]
    assert old.time["dp_comm_hidden"] == 0 < new.time["dp_comm_hidden"]
    assert old.step_time_s > 1.5 * new.step_time_s
    assert 40e12 < old.hardware_tflops_per_gpu * 1e12 < 75e12
