"""Pairs of GPUs wired to each other by unequal numbers of NVLinks: read, planned with, drawn, checked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.cluster import Cluster
from launcher.cluster.commands import Output
from launcher.cluster.discover import discover_from
from launcher.cluster.discover.sources import Text
from launcher.cluster.mesh import components, fewest_links, ring_links
from launcher.config.compose import load
from launcher.cost import Estimate
from launcher.cost.collectives import all_reduce_s, send_s
from launcher.cost.constants import DEFAULT
from launcher.cost.model import CostModel
from launcher.cost.network import fabric_of, group_of
from launcher.errors import InputError
from launcher.layout import Layout, Link, Placement, RankGrid
from launcher.planner.compare import resized
from launcher.preflight.gpu import domain_findings
from launcher.report.cluster_links import KeySources, axis_facts, link_facts
from launcher.report.cluster_svg import cluster_svg
from launcher.report.cluster_text import cluster_lines

# A DGX-1's hybrid cube mesh, as `nvidia-smi topo -m` shows it.
CUBE = (
    (0, 1, 1, 2, 2, 0, 0, 0), (1, 0, 2, 1, 0, 2, 0, 0), (1, 2, 0, 2, 0, 0, 1, 0), (2, 1, 2, 0, 0, 0, 0, 1),
    (2, 0, 0, 0, 0, 1, 1, 2), (0, 2, 0, 0, 1, 0, 2, 1), (0, 0, 1, 0, 1, 2, 0, 2), (0, 0, 0, 1, 2, 1, 2, 0),
)  # fmt: skip
BOARD = tuple(tuple(4 * (a != b) for b in range(4)) for a in range(4))  # of four GPUs, any two by four links


def cluster(*words: str) -> Cluster:
    return load(["cluster=dgx1_v100", *words]).job.cluster


def shape(tp: int) -> Layout:
    return Layout(tp=tp, pp=1, dp=8 // tp)


def matrix() -> str:
    """The text that `nvidia-smi topo -m` prints of such a node."""
    names = [f"GPU{gpu}" for gpu in range(8)]
    rows = [
        [f"GPU{a}", *(" X " if a == b else f"NV{CUBE[a][b]}" if CUBE[a][b] else "SYS" for b in range(8)), "0-39"]
        for a in range(8)
    ]
    return "\n".join("\t".join(row) for row in [["", *names, "CPU Affinity"], *rows]) + "\n"


@pytest.mark.parametrize(
    ("gpus", "links"),
    [
        pytest.param((0, 1), 1, id="a pair has its links"),
        pytest.param((0, 3), 2, id="a pair with two"),
        pytest.param((0, 5), 0, id="a pair with none"),
        pytest.param((0, 1, 2), 2, id="a triangle is one ring, both ways"),
        pytest.param((0, 1, 2, 3), 4, id="half of a cube: two rings of nine links"),
        pytest.param((0, 2, 4, 6), 2, id="a square that crosses the halves"),
        pytest.param((0, 1, 6, 7), 0, id="four that no ring passes"),
        pytest.param(tuple(range(8)), 6, id="the whole cube: three rings, all six links of each GPU"),
    ],
)
def test_rings_that_share_no_link(gpus: tuple[int, ...], links: int) -> None:
    assert ring_links(CUBE, gpus) == links


def test_a_board_of_four_uses_all_its_links_and_two_meshes_are_two_domains() -> None:
    assert ring_links(BOARD, (0, 1, 2, 3)) == 12
    assert fewest_links(BOARD, (0, 1, 2, 3)) == 4
    apart = (*((*row, 0, 0) for row in BOARD), (0, 0, 0, 0, 0, 2), (0, 0, 0, 0, 2, 0))
    assert components(apart) == ((0, 1, 2, 3), (4, 5))


def test_discover_writes_a_mesh_that_is_planned_with() -> None:
    file = discover_from([Text("n1", "topo.txt", matrix())], "site")
    [line] = [line for line in file.node if line.key == "nvlinks"]

    assert line.value == str([list(row) for row in CUBE])
    found = cluster(f"cluster.node.nvlinks={line.value}").node
    assert found.nvlinks == CUBE
    assert found.domains == (tuple(range(8)),)


def test_a_group_gets_the_links_of_its_rings_and_a_hop_those_of_its_pair() -> None:
    whole = cluster()
    fabric = fabric_of(whole, DEFAULT)
    layouts = {tp: shape(tp) for tp in (2, 4, 8)}
    shares = {tp: group_of(whole, layout, "tp").ring_share for tp, layout in layouts.items()}
    size = 2.0**28
    rates = {
        tp: 2 * (tp - 1) / tp * size / all_reduce_s(fabric, group_of(whole, layouts[tp], "tp"), size) for tp in (2, 8)
    }

    assert shares == {2: pytest.approx(1 / 6), 4: pytest.approx(4 / 6), 8: 1.0}  # pairs 0-1 and 4-5 have one link
    assert rates[8] == pytest.approx(6 * rates[2], rel=0.15)
    assert rates[8] < 150e9
    halves = group_of(whole, Layout(tp=4, pp=2, dp=1), "pp")  # 0-4 and 1-5 have two, 2-6 and 3-7 one
    assert halves.pair_share == pytest.approx(1 / 6)
    assert send_s(fabric, halves, size) > 1.9 * send_s(fabric, halves._replace(pair_share=2 / 6), size)


def test_where_no_ring_passes_it_is_pcie() -> None:
    order = "cluster.node.domains=[[0,5,1,4,2,7,3,6]]"  # pairs without a link next to each other
    crossed = Placement(cluster(order), RankGrid.of(shape(2)))

    assert crossed.link(0, 1) is Link.PCIE
    assert crossed.axis_link("tp") is Link.PCIE
    assert crossed.slowest_link((0, 1)) is Link.PCIE
    assert group_of(cluster(order), shape(2), "tp").per_domain == 1
    straight = Placement(cluster(), RankGrid.of(shape(2)))
    assert straight.axis_link("tp") is Link.NVLINK


def test_a_plan_on_the_mesh_is_faster_than_on_its_pcie_and_slower_than_behind_a_switch() -> None:
    def estimated(*words: str) -> Estimate:
        words = ("cluster=dgx1_v100", "model=gpt3_1b3", "train.global_batch=64", "train.dtype=fp16", *words)
        return CostModel(load(list(words)).job).estimate(shape(2))

    none = ("cluster.node.nvlinks=null", "cluster.node.nvlink=none")
    switch = ("cluster.node.nvlinks=null", "cluster.node.nvlink=nvswitch", "cluster.node.domain_size=auto")
    assert estimated(*switch).step_time_s < estimated().step_time_s < estimated(*none).step_time_s


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster.node.nvlink=nvswitch"], "nvlink=nvswitch does not wire GPUs to each other"),
        (["cluster.node.nvlinks=[[0,1],[1,0]]"], "2 rows, and a node has 8 GPUs"),
        (["cluster.node.nvlinks=[[0,1],[1]]", "cluster.node.num_gpus=2"], "as many numbers"),
        (["cluster.node.nvlinks=[[1,1],[1,0]]", "cluster.node.num_gpus=2"], "GPU0 has links to itself"),
        (["cluster.node.nvlinks=[[0,1],[2,0]]", "cluster.node.num_gpus=2"], "GPU0 has 1 to GPU1, which has 2 to it"),
        (["cluster.node.nvlinks=[[0,-1],[-1,0]]", "cluster.node.num_gpus=2"], "at least 0"),
    ],
)
def test_rows_that_are_no_mesh_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cluster("cluster.node.numa_of_gpu=null", *words)


def test_fewer_gpus_keep_their_own_links() -> None:
    half = tuple(row[:4] for row in CUBE[:4])
    assert cluster("cluster.node.num_gpus=4", "cluster.rails=1").node.nvlinks == half
    assert resized(cluster(), 4).node.nvlinks == half


def test_show_names_the_links_of_every_pair() -> None:
    node, layout = cluster(), shape(4)
    facts, axes = link_facts(node, KeySources({})), axis_facts(node, layout)
    text = "\n".join(cluster_lines(node, facts, layout, axes))

    assert "GPU0: NV1 to 1 2, NV2 to 3 4" in text
    assert "without NVLink to its peer" in text  # some pairs have none
    assert cluster_svg(node, facts, layout, axes).count("<path") == 16  # pairs with links


def test_check_finds_a_pair_that_lost_a_link() -> None:
    node = cluster().node
    [fine] = domain_findings(node, Output(matrix()))
    lost = [list(row) for row in CUBE]
    lost[0][3] = lost[3][0] = 3
    [broken] = domain_findings(replace(node, nvlinks=tuple(map(tuple, lost))), Output(matrix()))

    assert fine.level.name == "OK" and "16 pairs" in fine.message
    assert broken.level.name == "PROBLEM" and "0-3 has 2 of 3" in broken.message
