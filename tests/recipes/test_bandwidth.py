"""The bandwidth check: who meets whom, which node is slow, and a real run over two nodes of two ranks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import preloaded
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ports import free_port

from launcher.config.compose import load
from launcher.layout import Layout
from launcher.planner.options import BandwidthOptions
from launcher.planner.record import Plan, write_plan
from launcher.resources import resource
from launcher.run.folder import RunFolder
from launcher.run.result import read_bandwidth_result
from tests.recipes.test_measuring import recipe
from tests.shapes import cluster

bandwidth = recipe("bandwidth")


@given(st.integers(2, 33))
def test_in_all_rounds_every_two_nodes_meet_once(num_nodes: int) -> None:
    rounds = bandwidth.rounds(num_nodes, 100)

    assert all(partners[partners[node]] == node != partners[node] for partners in rounds for node in partners)
    met = [tuple(sorted(pair)) for partners in rounds for pair in partners.items()]
    assert sorted(met) == sorted(2 * list(combinations(range(num_nodes), 2)))


def test_rounds_are_bounded_and_one_node_meets_nobody() -> None:
    assert len(bandwidth.rounds(64, 7)) == 7
    assert bandwidth.rounds(1, 7) == []


def rates(*pairs: tuple[float | None, float | None]) -> list[Any]:
    return [bandwidth.NodeRates(f"n{i}", i, inside, between) for i, (inside, between) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("found", "slow"),
    [
        pytest.param(
            rates((230, 180), (228, 181), (229, 90), (231, 178)), {2: ["between 90 of 180 GB/s"]}, id="a bad NIC"
        ),
        pytest.param(rates((230, 180), (120, 181), (229, 179)), {1: ["inside 120 of 229 GB/s"]}, id="a bad NVLink"),
        pytest.param(
            rates((230, 180), (100, 70)), {1: ["inside 100 of 230 GB/s", "between 70 of 180 GB/s"]}, id="of two"
        ),
        pytest.param(rates((230, 180), (200, 160), (229, 179)), {}, id="within the threshold"),
        pytest.param(rates((230, None)), {}, id="one node"),
        pytest.param(rates((None, 12), (None, 12)), {}, id="one rank a node"),
        pytest.param([], {}, id="nothing"),
    ],
)
def test_slow_nodes_are_those_below_their_peers(found: list[Any], slow: dict[int, list[str]]) -> None:
    assert bandwidth.slow_nodes(found, cluster(nodes=4), threshold=0.8) == slow


def test_the_cluster_file_s_own_measurements_and_taper_count() -> None:
    found = rates((230, 180), (229, 80))
    tapered = replace(cluster(nodes=8), nodes_per_leaf=4, oversubscription=2.0)
    node = replace(tapered.node, busbw_bytes_per_s={"nvlink": 300e9})

    assert bandwidth.slow_nodes(found, tapered, threshold=0.8) == {}
    measured = bandwidth.slow_nodes(found, replace(tapered, node=node), threshold=0.8)
    assert measured == {0: ["inside 230 of 300 GB/s"], 1: ["inside 229 of 300 GB/s"]}


@pytest.mark.parametrize(
    ("bytes_per_s", "measured_with", "calls"),
    [(1e9, 64_000_000, 5), (20e6, 8_000_000, 5), (1e6, 1_000_000, 3), (1e5, 1_000_000, 1)],
)
def test_messages_are_as_large_and_as_many_as_their_time_allows(
    monkeypatch: pytest.MonkeyPatch, bytes_per_s: float, measured_with: int, calls: int
) -> None:
    made: list[tuple[int, int]] = []

    def timed(call: Callable[[], int], *, device: object, warmup: int, iterations: int) -> float:
        made.append((call(), iterations))
        return made[-1][0] / bytes_per_s

    monkeypatch.setattr(bandwidth, "seconds_per_call", timed)
    found = bandwidth.rate(lambda buffer: 4 * len(buffer), float, 64_000_000, "cpu", BandwidthOptions())
    assert (found, made[-1]) == (pytest.approx(bytes_per_s), (measured_with, calls))


def test_a_node_is_as_fast_as_its_slowest_rank_and_judged_by_its_best_meeting() -> None:
    members = [("n0", 0, 1e9, [0.5e9, 1e9]), ("n0", 0, 0.5e9, [1e9, 1e9])]

    found = bandwidth.node_rates(members)
    assert (found.inside_gbytes_per_s, found.between_gbytes_per_s) == (0.5, 2.0)


@pytest.mark.slow
def test_two_nodes_of_two_ranks_are_measured(tmp_path: Path) -> None:
    overrides = [
        "cluster.num_nodes=2",
        "cluster.node.num_gpus=2",
        "cluster.node.num_nics=1",
        "cluster.node.nic_gbps=10",
    ]
    # The nodes are one machine here, so that neither is slow: the threshold is the lowest that means anything.
    settings = load(["recipe=bandwidth", "recipe.bytes=65536", "recipe.threshold=0.001", *overrides, "layout.dp=4"])
    write_plan(Plan(settings.job, Layout(tp=1, pp=1, dp=4), {}, (), settings.run_options), RunFolder(tmp_path).plan)
    port = free_port()
    where = {"LAUNCHER_PLAN": str(RunFolder(tmp_path).plan), "LAUNCHER_RUN_DIR": str(tmp_path)}
    driver = str(Path(__file__).with_name("fork_ranks.py"))
    done = preloaded.run(
        [sys.executable, driver, str(resource("recipes") / "bandwidth.py"), "2", "2", str(port)],
        env=os.environ | where | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = read_bandwidth_result(RunFolder(tmp_path).result)
    assert [node.node for node in found.nodes] == [0, 1]
    assert all(node.inside_gbytes_per_s and node.between_gbytes_per_s for node in found.nodes)
    assert found.exclude == ()
    assert json.loads(done.stdout.splitlines()[-1])["num_nodes"] == 2
