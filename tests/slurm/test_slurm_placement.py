"""Which host becomes which node of the plan: against brute force, on trees that Slurm sites really have."""

from __future__ import annotations

import time
from itertools import permutations
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import plan

from launcher.cluster.readers_slurm import SlurmTopology, read_slurm_topology
from launcher.slurm.placement import Tree, assign, cost
from launcher.slurm.traffic import NodeTraffic, node_traffic

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
).map(lambda edges: NodeTraffic(edges, {}))
LAYOUTS = st.sampled_from(
    [
        {"tp": 8, "pp": 1, "dp": 6},
        {"tp": 8, "pp": 2, "dp": 3},
        {"tp": 8, "pp": 3, "dp": 2, "zero_stage": 3},
        {"tp": 8, "pp": 6, "dp": 1},
        {"tp": 8, "pp": 2, "dp": 3, "virtual_stages": 2, "schedule": "interleaved", "axis_order": "tp-pp-cp-dp"},
        {"tp": 4, "pp": 3, "dp": 2, "cp": 2, "axis_order": "tp-cp-pp-dp"},
        {"tp": 2, "pp": 1, "dp": 12, "cp": 2},
        {"tp": 2, "pp": 2, "dp": 12, "axis_order": "tp-cp-pp-dp"},
        {"tp": 8, "pp": 1, "dp": 6, "ep": 3},
        {"tp": 4, "pp": 2, "dp": 6, "ep": 2, "zero_stage": 1},
        {"tp": 1, "pp": 1, "dp": 48, "ep": 16},
        {"tp": 4, "pp": 1, "dp": 12, "zero_stage": 3, "shard_group": 4},
        {"tp": 2, "pp": 2, "dp": 12, "zero_stage": 1, "shard_group": 6},
    ]
)
LEAVES = st.lists(st.sampled_from(["s0", "s1", "s2"]), min_size=6, max_size=7)
PARENTS = {"s0": "a", "s1": "a", "s2": "b", "a": "root", "b": "root"}


@settings(deadline=None, max_examples=60)
@given(traffics, st.lists(st.sampled_from(["s0", "s1", "s2"]), min_size=6, max_size=6))
def test_small_jobs_are_placed_as_well_as_brute_force(traffic: NodeTraffic, leaves: list[str]) -> None:
    tree = Tree(tuple("abcdef"), tuple(leaves), {"s0": "a", "s1": "a", "s2": "b", "a": "root", "b": "root"})
    found = assign(traffic, tree)
    best = min(cost(traffic, tree, order) for order in set(permutations(leaves)))
    assert found.exact
    assert found.cost == pytest.approx(best)
    assert sorted(found.hosts) == list("abcdef")
    assert [tree.leaf[tree.hosts.index(host)] for host in found.hosts] == list(found.leaves)


@settings(deadline=None, max_examples=60)
@given(traffics, st.lists(st.sampled_from(["s0", "s1", "s2"]), min_size=6, max_size=6))
def test_the_heuristic_lies_between_brute_force_and_slurm_s_order(traffic: NodeTraffic, leaves: list[str]) -> None:
    tree = Tree(tuple("abcdef"), tuple(leaves), {"s0": "a", "s1": "a", "s2": "b", "a": "root", "b": "root"})
    found = assign(traffic, tree, exact_limit=0)
    best = min(cost(traffic, tree, order) for order in set(permutations(leaves)))
    assert not found.exact
    assert best * (1 - 1e-9) <= found.cost <= found.as_given * (1 + 1e-9)


@settings(deadline=None, max_examples=150)
@given(LAYOUTS, LEAVES)
def test_the_bound_is_below_the_best_and_the_heuristic_no_further_from_it_than_it_says(
    layout: dict[str, Any], leaves: list[str]
) -> None:
    traffic = node_traffic(plan(nodes=6, experts=16 if "ep" in layout else 0, **layout))
    tree = Tree(tuple("abcdefg"[: len(leaves)]), tuple(leaves), PARENTS)
    found = assign(traffic, tree, exact_limit=0)
    best = assign(traffic, tree)
    assert best.exact
    assert found.least <= best.cost * (1 + 1e-9) <= found.cost * (1 + 1e-9) ** 2
    if found.excess is not None:
        assert found.cost <= (1 + found.excess) * best.cost * (1 + 1e-9)


def shuffled(num_hosts: int, *, per_leaf: int, leaves_per_pod: int) -> SlurmTopology:
    """Three levels of switches, over hosts with names that do not show their location."""
    hosts = [f"n{i}" for i in range(num_hosts)]
    Random(0).shuffle(hosts)
    leaves = [hosts[i : i + per_leaf] for i in range(0, num_hosts, per_leaf)]
    pods = [range(i, min(i + leaves_per_pod, len(leaves))) for i in range(0, len(leaves), leaves_per_pod)]
    lines = [f"SwitchName=leaf{i} Nodes={','.join(members)}" for i, members in enumerate(leaves)]
    lines += [f"SwitchName=pod{i} Switches={','.join(f'leaf{leaf}' for leaf in pod)}" for i, pod in enumerate(pods)]
    return read_slurm_topology("\n".join([*lines, f"SwitchName=core Switches=pod[0-{len(pods) - 1}]"]))


@pytest.mark.parametrize(
    ("num_nodes", "per_leaf", "layout"),
    [
        (16384, 16, {"tp": 8, "pp": 16, "dp": 1024}),
        (16384, 20, {"tp": 8, "pp": 16, "dp": 1024, "zero_stage": 1}),
        (16384, 16, {"tp": 8, "pp": 8, "dp": 512, "cp": 4}),
        (16384, 16, {"tp": 8, "pp": 16, "dp": 1024, "ep": 8}),
        (4096, 32, {"tp": 8, "pp": 1, "dp": 4096, "zero_stage": 3}),
    ],
)
def test_16384_shuffled_hosts_are_placed_within_5_seconds(
    num_nodes: int, per_leaf: int, layout: dict[str, Any]
) -> None:
    batch = 4 * layout["dp"]
    job = plan(nodes=num_nodes, batch=batch, experts=64 if "ep" in layout else 0, **layout)
    topology = shuffled(num_nodes, per_leaf=per_leaf, leaves_per_pod=32)
    began = time.process_time()
    tree = Tree.of([f"n{i}" for i in range(num_nodes)], topology)
    found = assign(node_traffic(job), tree)
    took = time.process_time() - began
    assert took < 5
    assert sorted(found.hosts) == sorted(tree.hosts)
    assert [topology.leaf_of(host) for host in found.hosts] == list(found.leaves)
    assert found.excess is not None
    assert found.excess < 0.35
    assert found.cost < 0.2 * found.as_given


def test_the_time_budget_is_kept_and_the_result_is_still_no_worse_than_slurm_s_order() -> None:
    ticks = iter(range(10**9))
    tree = Tree.of([f"n{i}" for i in range(1024)], shuffled(1024, per_leaf=16, leaves_per_pod=8))
    found = assign(node_traffic(plan(nodes=1024, tp=8, pp=16, dp=64)), tree, budget_s=2, clock=lambda: next(ticks))
    assert next(ticks) < 10
    assert found.cost <= found.as_given
    assert sorted(found.hosts) == sorted(tree.hosts)


def test_leaves_of_unequal_size_and_spares_are_used_where_they_fit() -> None:
    """Four pipelines of four nodes: the leaves of four take one each, the five spare hosts are on the others."""
    sizes = {"s0": 3, "s1": 4, "s2": 2, "s3": 4, "s4": 4, "s5": 4}
    leaves = [leaf for leaf, size in sizes.items() for _ in range(size)]
    Random(1).shuffle(leaves)
    tree = Tree(tuple(f"n{i}" for i in range(21)), tuple(leaves), dict.fromkeys(sizes, "spine"))
    traffic = node_traffic(plan(nodes=16, tp=8, pp=4, dp=4, batch=1024))
    found = assign(traffic, tree)
    assert not found.exact
    for pipeline in range(4):
        assert len({found.leaves[pipeline + 4 * stage] for stage in range(4)}) == 1
    assert {found.leaves[spare] for spare in range(16, 21)} == {"s0", "s2"}


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
    assert node_traffic(plan(nodes=1, tp=8, pp=1, dp=1)).edges == {}
    assert set(node_traffic(plan(nodes=2, tp=8, pp=2, dp=1)).edges) == {(0, 1)}
    assert set(node_traffic(plan(nodes=4, tp=8, pp=4, dp=1)).edges) == {(0, 1), (1, 2), (2, 3), (0, 3)}  # a tied table
    assert set(node_traffic(plan(nodes=4, tp=8, pp=1, dp=4)).edges) == {(0, 1), (1, 2), (2, 3), (0, 3)}
    assert set(node_traffic(plan(nodes=2, tp=1, pp=1, dp=16, ep=16, experts=16)).edges) == {(0, 1)}
