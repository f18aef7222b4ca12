"""Which host becomes which node of the plan: against brute force, on trees that Slurm sites really have."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import plan

from launcher.cluster.readers_slurm import SlurmTopology, read_slurm_topology
from launcher.slurm.placement import Tree, assign, cost
from launcher.slurm.traffic import Traffic, node_traffic

TWO_LEAVES = """
SwitchName=leaf1 Nodes=node[2,10]
SwitchName=leaf2 Nodes=node[1,9]
SwitchName=spine Switches=leaf[1-2]
"""
THREE_LEVELS = """
SwitchName=s0 Nodes=n[0-2]
SwitchName=s1 Nodes=n[3-5]
SwitchName=s2 Nodes=n[6-7]
SwitchName=a Switches=s[0-1]
SwitchName=b Switches=s2
SwitchName=root Switches=a,b
"""


def topology(text: str) -> SlurmTopology:
    return read_slurm_topology(text)


def test_stages_that_talk_share_a_leaf_although_slurm_orders_the_hosts_otherwise() -> None:
    hosts = ("node1", "node2", "node9", "node10")  # Slurm's order alternates between the leaves
    found = assign(node_traffic(plan(tp=8, pp=4, dp=1)), Tree.of(hosts, topology(TWO_LEAVES)))
    leaves = [topology(TWO_LEAVES).leaf_of(host) for host in found.hosts]
    # a chain of four stages, one a node: one link must cross, not three
    assert leaves[0] == leaves[1] != leaves[2] == leaves[3]
    assert found.exact
    assert found.cost < found.as_given


def test_levels_count_the_switches_that_traffic_climbs() -> None:
    tree = Tree.of([f"n{i}" for i in range(8)], topology(THREE_LEVELS))
    assert tree.levels["s0", "s0"] == 0
    assert tree.levels["s0", "s1"] == tree.levels["s1", "s0"] == 1
    assert tree.levels["s0", "s2"] == tree.levels["s2", "s0"] == 2


def test_without_a_topology_slurm_s_order_stays() -> None:
    hosts = ("b", "a", "c", "d")
    assert assign(node_traffic(plan()), Tree.of(hosts, None)).hosts == hosts


traffics = st.dictionaries(
    st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda pair: pair[0] < pair[1]),
    st.floats(0, 1e9),
    max_size=15,
)


@settings(deadline=None, max_examples=60)
@given(traffics, st.lists(st.sampled_from(["s0", "s1", "s2"]), min_size=6, max_size=6))
def test_small_jobs_are_placed_as_well_as_brute_force(traffic: Traffic, leaves: list[str]) -> None:
    tree = Tree(tuple("abcdef"), tuple(leaves), {"s0": "a", "s1": "a", "s2": "b", "a": "root", "b": "root"})
    found = assign(traffic, tree)
    best = min(cost(traffic, tree, order) for order in set(permutations(leaves)))
    assert found.exact
    assert found.cost == pytest.approx(best)
    assert sorted(found.hosts) == list("abcdef")
    assert [tree.leaf[tree.hosts.index(host)] for host in found.hosts] == list(found.leaves)


@settings(deadline=None, max_examples=60)
@given(traffics, st.lists(st.sampled_from(["s0", "s1", "s2"]), min_size=6, max_size=6))
def test_the_heuristic_lies_between_brute_force_and_slurm_s_order(traffic: Traffic, leaves: list[str]) -> None:
    tree = Tree(tuple("abcdef"), tuple(leaves), {"s0": "a", "s1": "a", "s2": "b", "a": "root", "b": "root"})
    found = assign(traffic, tree, exact_limit=0)
    best = min(cost(traffic, tree, order) for order in set(permutations(leaves)))
    assert not found.exact
    assert best * (1 - 1e-9) <= found.cost <= found.as_given * (1 + 1e-9)


@pytest.mark.parametrize(("pp", "dp"), [(4, 16), (16, 4), (64, 1), (1, 64)])
def test_a_large_scattered_job_is_placed_no_worse_than_in_order_over_full_leaves(pp: int, dp: int) -> None:
    hosts = tuple(f"n{i}" for i in range(64))
    scattered = Tree(hosts, tuple(f"leaf{i % 4}" for i in range(64)), {f"leaf{i}": "spine" for i in range(4)})
    traffic = node_traffic(plan(nodes=64, tp=8, pp=pp, dp=dp))
    found = assign(traffic, scattered)
    in_order = cost(traffic, scattered, [f"leaf{i // 16}" for i in range(64)])
    assert not found.exact
    assert sorted(found.hosts) == sorted(hosts)
    assert found.cost <= in_order * (1 + 1e-9)
    assert found.cost <= found.as_given


def test_nothing_is_counted_inside_a_node_and_every_axis_is_counted_between_nodes() -> None:
    assert node_traffic(plan(nodes=1, tp=8, pp=1, dp=1)) == {}
    assert set(node_traffic(plan(nodes=2, tp=8, pp=2, dp=1))) == {(0, 1)}
    assert set(node_traffic(plan(nodes=4, tp=8, pp=4, dp=1))) == {(0, 1), (1, 2), (2, 3), (0, 3)}  # a tied table
    assert set(node_traffic(plan(nodes=4, tp=8, pp=1, dp=4))) == {(0, 1), (1, 2), (2, 3), (0, 3)}
    assert set(node_traffic(plan(nodes=2, tp=1, pp=1, dp=16, ep=16))) == {(0, 1)}
