"""Where ranks sit, and which links their groups cross."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import cluster

from launcher.layout import Link, Placement, RankGrid
from launcher.layout.degrees import AXES


@st.composite
def placements(draw: st.DrawFn, *, most_rails: int = 1) -> Placement:
    """A grid that fills some nodes, with domains that may differ in size."""
    axes = tuple(draw(st.permutations(AXES)))
    sizes = draw(st.tuples(*(st.integers(1, 4) for _ in AXES)))
    world = prod(sizes)
    per_node = draw(st.sampled_from([n for n in range(1, world + 1) if world % n == 0 and n <= 16]))
    domains, left = [], per_node
    while left:
        domains.append(draw(st.integers(1, left)))
        left -= domains[-1]
    dp = sizes[axes.index("dp")]
    ep = draw(st.sampled_from([d for d in range(1, dp + 1) if dp % d == 0]))
    fabric = cluster(
        nodes=world // per_node,
        domains=tuple(domains),
        nodes_per_leaf=draw(st.integers(0, 4)),
        rails=draw(st.sampled_from([rails for rails in (1, 2, 4, 8) if rails <= most_rails])),
    )
    return Placement(fabric, RankGrid(axes, sizes, ep))


@given(placements(most_rails=8), st.sampled_from([*AXES, "ep"]))
@settings(max_examples=300)
def test_the_slowest_link_of_an_axis_is_that_of_its_worst_group(placement: Placement, axis: str) -> None:
    by_listing = max(placement.slowest_link(group) for group in placement.grid.groups(axis))
    assert placement.axis_link(axis) == by_listing


@given(placements())
def test_slot_and_rank_are_inverse_to_each_other(placement: Placement) -> None:
    slots = [placement.slot(rank) for rank in range(placement.grid.size)]
    assert [placement.rank_at(node=slot.node, gpu=slot.gpu) for slot in slots] == list(range(len(slots)))
    assert len(set(slots)) == len(slots)
    assert max(slot.node for slot in slots) == placement.num_nodes - 1


@given(placements(), st.data())
def test_the_slowest_link_of_a_group_is_the_slowest_of_its_pairs(placement: Placement, data: st.DataObject) -> None:
    group = data.draw(st.sampled_from(list(placement.grid.groups(data.draw(st.sampled_from(AXES))))))
    pairs = [placement.link(a, b) for a in group for b in group if a != b]
    assert placement.slowest_link(group) == max(pairs, default=Link.SAME_GPU)


@given(placements(most_rails=8), st.sampled_from(AXES))
@settings(max_examples=300)
def test_rings_stay_on_a_rail_that_all_nodes_of_the_group_share(placement: Placement, axis: str) -> None:
    per_node, rails = placement.cluster.node.num_gpus, placement.cluster.rails
    for group in placement.grid.groups(axis):
        nodes = {rank // per_node for rank in group}
        if len({placement.cluster.leaf(node) for node in nodes}) > 1 or len(nodes) < 2:
            continue
        on = [
            {placement.slot(rank).gpu * rails // per_node for rank in group if rank // per_node == node}
            for node in nodes
        ]
        assert placement.slowest_link(group) == (Link.LEAF if set.intersection(*on) else Link.SPINE)


RAILS = [
    # rails, (tp, cp, dp, pp), axis order, the link of each axis: two nodes of eight GPUs under one set of leaves
    (1, (4, 1, 1, 4), "tp-cp-dp-pp", {"pp": Link.LEAF}),
    (8, (8, 1, 2, 1), "tp-cp-dp-pp", {"dp": Link.LEAF}),  # the same GPU of both nodes
    (8, (1, 1, 16, 1), "tp-cp-dp-pp", {"dp": Link.LEAF}),  # every GPU of both: a ring for each rail
    (8, (1, 1, 4, 4), "tp-pp-cp-dp", {"pp": Link.NVLINK, "dp": Link.LEAF}),
    (8, (2, 1, 1, 8), "tp-cp-dp-pp", {"pp": Link.LEAF}),
]


@pytest.mark.parametrize(("rails", "degrees", "order", "links"), RAILS)
def test_a_rail_optimised_fabric_keeps_groups_of_one_rail_on_their_leaf(
    rails: int, degrees: tuple[int, ...], order: str, links: dict[str, Link]
) -> None:
    sizes = dict(zip(AXES, degrees, strict=True))
    axes = tuple(order.split("-"))
    placement = Placement(cluster(nodes=2, rails=rails), RankGrid(axes, tuple(sizes[axis] for axis in axes)))
    assert {axis: placement.axis_link(axis) for axis in links} == links
    assert placement.link(0, 8) == Link.LEAF
    assert placement.link(0, 9) == (Link.LEAF if rails == 1 else Link.SPINE)


CROSSINGS = [
    # nodes, domains, nodes per leaf, (tp, cp, dp, pp), the link of each axis
    (1, (8,), 0, (8, 1, 1, 1), {"tp": Link.NVLINK, "dp": Link.SAME_GPU}),
    (2, (8,), 0, (8, 1, 2, 1), {"tp": Link.NVLINK, "dp": Link.LEAF}),
    (2, (8,), 1, (8, 1, 1, 2), {"tp": Link.NVLINK, "pp": Link.SPINE}),
    (2, (8,), 0, (16, 1, 1, 1), {"tp": Link.LEAF}),
    (1, (2, 2, 2, 2), 0, (2, 1, 4, 1), {"tp": Link.NVLINK, "dp": Link.PCIE}),
    (1, (2, 2, 2, 2), 0, (4, 1, 2, 1), {"tp": Link.PCIE, "dp": Link.PCIE}),
    (1, (1,) * 8, 0, (2, 1, 4, 1), {"tp": Link.PCIE}),
    (1, (4, 2), 0, (2, 1, 3, 1), {"tp": Link.NVLINK, "dp": Link.PCIE}),
    (4, (8,), 2, (8, 1, 2, 2), {"tp": Link.NVLINK, "dp": Link.LEAF, "pp": Link.SPINE}),
]


@pytest.mark.parametrize(("nodes", "domains", "per_leaf", "degrees", "links"), CROSSINGS)
def test_each_axis_crosses_the_links_that_its_place_in_the_order_gives_it(
    nodes: int, domains: tuple[int, ...], per_leaf: int, degrees: tuple[int, ...], links: dict[str, Link]
) -> None:
    placement = Placement(cluster(nodes=nodes, domains=domains, nodes_per_leaf=per_leaf), RankGrid(AXES, degrees))
    assert {axis: placement.axis_link(axis) for axis in links} == links


def test_ranks_fill_a_node_domain_by_domain() -> None:
    fabric = cluster(domains=(2, 2))
    node = fabric.node.__class__(fabric.node.gpu, 4, domains=((0, 2), (1, 3)), nvlink="bridge")
    placement = Placement(fabric.__class__("bridged", 1, node=node), RankGrid(("tp", "dp"), (2, 2)))
    assert [placement.slot(rank).gpu for rank in range(4)] == [0, 2, 1, 3]
    assert placement.axis_link("tp") == Link.NVLINK
    assert placement.axis_link("dp") == Link.PCIE


def test_nodes_with_different_numbers_of_ranks_have_them_in_order() -> None:
    placement = Placement(cluster(nodes=3, domains=(4,)), RankGrid(AXES, (1, 1, 7, 1)), (2, 4, 1))
    slots = [placement.slot(rank) for rank in range(7)]
    assert [(slot.node, slot.local_rank) for slot in slots] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0),
    ]  # fmt: skip
    assert [placement.rank_at(node=slot.node, gpu=slot.gpu) for slot in slots] == list(range(7))
    assert (placement.num_nodes, placement.ranks_per_node, placement.ranks_on(2)) == (3, 4, 1)
