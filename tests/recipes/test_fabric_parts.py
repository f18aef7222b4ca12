"""Rails one at a time and pairs of leaves: which groups they are, and what a slow one is called."""

from __future__ import annotations

import json
import os
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import preloaded
import pytest
from ports import free_port

from launcher.config.compose import load
from launcher.layout import Layout, Placement, RankGrid
from launcher.planner.record import Plan, write_plan
from launcher.resources import resource
from launcher.run.folder import RunFolder
from launcher.worker.metrics.fabric_groups import leaf_pair_rounds, rail_groups, slow_parts

RECIPE = str(resource("recipes") / "collectives.py")
TWO_RAILS = ("cluster.node.num_gpus=2", "cluster.node.num_nics=2", "cluster.node.nic_gbps=10", "cluster.rails=2")


def placed(nodes: int, *words: str) -> tuple[Placement, int]:
    cluster = load(["cluster=dgx_a100_80g", f"cluster.num_nodes={nodes}", *words]).job.cluster
    world = cluster.num_gpus
    return Placement(cluster, RankGrid.of(Layout(tp=8, pp=1, dp=world // 8))), world


def test_a_rail_is_the_same_gpu_of_every_node() -> None:
    groups = rail_groups(*placed(3))

    assert groups == tuple((gpu, 8 + gpu, 16 + gpu) for gpu in range(8))
    assert rail_groups(*placed(3, "cluster.rails=2"))[1] == (4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23)
    assert rail_groups(*placed(3, "cluster.rails=1")) == rail_groups(*placed(1)) == ()


@pytest.mark.parametrize("leaves", [2, 3, 4, 5, 8])
def test_every_pair_of_leaves_meets_once_and_no_leaf_twice_at_a_time(leaves: int) -> None:
    placement, world = placed(2 * leaves, "cluster.nodes_per_leaf=2")
    rounds = list(leaf_pair_rounds(placement, world))
    met = [
        tuple(sorted({placement.cluster.leaf(placement.slot(rank).node) for rank in group}))
        for groups in rounds
        for group in groups
    ]

    assert sorted(met) == list(combinations(range(leaves), 2))
    for groups in rounds:
        ranks = [rank for group in groups for rank in group]
        assert len(ranks) == len(set(ranks))
        assert all(len(group) == 32 for group in groups)


def test_of_unequal_leaves_as_many_ranks_of_either_take_part() -> None:
    [pair] = [group for groups in leaf_pair_rounds(*placed(3, "cluster.leaf_sizes=[2,1]")) for group in groups]
    assert pair == (*range(8), *range(16, 24))
    assert list(leaf_pair_rounds(*placed(3))) == []


def test_a_slow_part_has_its_name() -> None:
    placement, _ = placed(6, "cluster.nodes_per_leaf=2")
    pairs = [("leaf pair", (0, 16)), ("leaf pair", (16, 32))]

    assert slow_parts(placement, [("rail", (3, 11))]) == "rail 3 is slower than the others"
    assert slow_parts(placement, pairs) == "leaf 1 is slower than the others"
    assert slow_parts(placement, pairs[:1]) == "between leaves 0 and 1 it is slower than the others"
    assert slow_parts(placement, [("tp", (0, 1))]) == slow_parts(placement, []) == ""


def measured(folder: Path, *words: str, nodes: int, sleepy: int) -> dict[str, Any]:
    """The document of a real run over two ranks on each of `nodes` nodes that are all this machine."""
    options = ["recipe.operations=[all_reduce]", "recipe.sizes=64:1K:16", "recipe.seconds=0", "recipe.iterations=3"]
    known = ["recipe.world=false", "recipe.alone=false", "recipe.warmup=1", "layout.tp=2", "layout.pp=1"]
    settings = load(
        ["recipe=collectives", f"cluster.num_nodes={nodes}", *options, *known, f"layout.dp={nodes}", *words]
    )
    layout = Layout(tp=2, pp=1, dp=nodes)
    write_plan(Plan(settings.job, layout, {}, (), settings.run_options), RunFolder(folder).plan)
    port = str(free_port())
    env = {**os.environ, "LAUNCHER_PLAN": str(RunFolder(folder).plan), "LAUNCHER_RUN_DIR": str(folder)}
    env |= {"OMP_NUM_THREADS": "1", "SLEEPY_RANK": str(sleepy), "SLEEPY_S": "0.2", "RECIPE": RECIPE}
    driver, script = (str(Path(__file__).with_name(name)) for name in ("fork_ranks.py", "sleepy_rank.py"))
    argv = [sys.executable, driver, script, str(nodes), "2", port]
    done = preloaded.run(argv, env=env, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(RunFolder(folder).result.read_text())
    return found


@pytest.mark.slow
def test_rails_run_one_at_a_time_and_leaves_in_pairs(tmp_path: Path) -> None:
    """Three nodes, each under leaves of its own, two rails; the second rank of the second node sleeps."""
    document = measured(tmp_path, *TWO_RAILS, "cluster.nodes_per_leaf=1", nodes=3, sleepy=3)
    rows = {axis: [row for row in document["results"] if row["axis"] == axis] for axis in ("rail", "leaf pair")}

    assert [[group["ranks"] for group in row["groups"]] for row in rows["rail"]] == [[[0, 2, 4], [1, 3, 5]]] * 2
    assert {row["num_groups"] for row in rows["rail"]} == {1}  # at a time
    pairs = [group["ranks"] for row in rows["leaf pair"] for group in row["groups"]]
    assert sorted(map(tuple, pairs)) == sorted(2 * [(0, 1, 2, 3), (0, 1, 4, 5), (2, 3, 4, 5)])
    assert all(row["wrong"] == 0 for row in document["results"])
    assert document["verdict"]["ranks"] == [3]
    assert "rail 1 is slower" in document["verdict"]["text"]
    assert "leaf 1 is slower" in document["verdict"]["text"]
