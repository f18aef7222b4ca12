"""Rates that recipes measured, in the cluster file, change the estimate and survive plan.json."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config.compose import load
from launcher.cost.collectives import all_reduce_s
from launcher.cost.constants import DEFAULT
from launcher.cost.network import Group, fabric_of
from launcher.errors import InputError
from launcher.layout import Layout
from launcher.planner.record import Plan, read_plan, write_plan

DGX = ["cluster=dgx_a100_80g", "cluster.num_nodes=4"]
LARGE = 2.0**30
EIGHT, FOUR_NODES = Group(8, 8, 8, 1), Group(32, 8, 8, 4)


def busbw(group: Group, *overrides: str) -> float:
    """Bus bandwidth in GB/s that the model gives a large all-reduce."""
    fabric = fabric_of(load([*DGX, *overrides]).job.cluster, DEFAULT)
    seconds = all_reduce_s(fabric, group, LARGE)
    return LARGE / seconds / 1e9 * 2 * (group.ranks - 1) / group.ranks


def test_measured_nvlink_bandwidth_is_what_an_all_reduce_reaches() -> None:
    assert busbw(EIGHT, "cluster.node.busbw_gbytes_per_s={nvlink: 115}") == pytest.approx(115, rel=0.01)


def test_measured_bandwidth_between_nodes_replaces_the_line_rate() -> None:
    slow = busbw(FOUR_NODES, "cluster.node.busbw_gbytes_per_s={leaf: 50}")

    assert slow == pytest.approx(50 * DEFAULT.inter_node_fraction, rel=0.02)
    assert slow < 0.5 * busbw(FOUR_NODES)


def test_measured_spine_bandwidth_counts_where_a_group_crosses_it() -> None:
    measured = "cluster.node.busbw_gbytes_per_s={leaf: 180, spine: 60}"
    across = Group(32, 8, 8, 4, spine=True)

    assert busbw(across, measured) == pytest.approx(busbw(FOUR_NODES, measured) / 3, rel=0.02)


@pytest.mark.parametrize("given", ["{nvlink: fast}", "{pci: 3}", "{leaf: -1}", "{leaf: 0}"])
def test_rates_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(InputError, match="busbw_gbytes_per_s"):
        load([*DGX, f"cluster.node.busbw_gbytes_per_s={given}"])


def test_measured_rates_survive_the_plan_file(tmp_path: Path) -> None:
    job = load([*DGX, "cluster.node.busbw_gbytes_per_s={leaf: 50}"]).job
    plan = Plan(job, Layout(tp=1, pp=1, dp=1), {}, ())
    file = write_plan(plan, tmp_path / "plan")

    assert dict(read_plan(file).job.cluster.node.busbw_bytes_per_s) == {"leaf": 50e9}
