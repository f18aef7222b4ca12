"""A rank that is not where the plan put it stops, with both names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from ranks import make_plan

from launcher.env import RankEnv
from launcher.errors import InputError
from launcher.layout import Layout
from launcher.planner.record import Plan
from launcher.worker.placement import Place, check_place, gathered_problems, same_host


def rank_env(rank: int, *, local_rank: int | None = None, node: int = 0, world_size: int = 8) -> RankEnv:
    local = rank if local_rank is None else local_rank
    return RankEnv(rank, world_size, local, world_size, node, 0, Path("plan.json"), Path())


@pytest.fixture
def plan() -> Plan:
    return replace(make_plan(Layout(tp=2, pp=2, dp=2)), hosts=("node10",))


def test_the_right_place_is_accepted(plan: Plan) -> None:
    assert check_place(plan, rank_env(3), host="node10.cluster") == Place(3, "node10.cluster", None, "cpu:3")


@pytest.mark.parametrize(
    ("env", "host", "both"),
    [
        (rank_env(3), "node2", ("node10", "node2")),
        (rank_env(3, local_rank=1), "node10", ("local rank 3", "local rank 1")),
        (rank_env(3, node=1), "node10", ("node 0", "node 1")),
        (rank_env(3, world_size=4), "node10", ("8 ranks", "4 were started")),
    ],
)
def test_another_host_rank_node_or_world_is_reported_with_both_names(
    plan: Plan, env: RankEnv, host: str, both: tuple[str, str]
) -> None:
    with pytest.raises(InputError) as error:
        check_place(plan, env, host=host)
    assert all(name in str(error.value) for name in both)


def test_a_gpu_plan_on_a_machine_without_that_gpu_is_reported(plan: Plan) -> None:
    node = plan.job.cluster.node
    gpu_node = replace(node, gpu=replace(node.gpu, kind="cuda", name="a100_sxm_80g"))
    gpu_plan = replace(plan, job=replace(plan.job, cluster=replace(plan.job.cluster, node=gpu_node)))
    with pytest.raises(InputError, match=r"GPU 7 \(a100_sxm_80g\).*sees \d+ CUDA devices"):
        check_place(gpu_plan, rank_env(7), host="node10")


def test_two_ranks_on_one_device_and_one_node_on_two_hosts_are_reported(plan: Plan) -> None:
    places = [Place(rank, "node10", 0, f"GPU-{rank % 7}") for rank in range(8)]
    assert gathered_problems(plan, places) == ["ranks 0 and 7 both run on GPU-0 of node10: one device, one rank"]
    apart = [Place(rank, "node10" if rank < 4 else "node2", None, f"cpu:{rank}") for rank in range(8)]
    assert any("node10" in problem and "node2" in problem for problem in gathered_problems(plan, apart))


@pytest.mark.parametrize(
    ("planned", "found", "same"),
    [
        ("n1", "n1", True),
        ("n1", "n1.site", True),
        ("n1.site", "n1", True),
        ("n1", "n10", False),
        ("n1.a", "n1.b", False),
    ],
)
def test_host_names_match_with_and_without_their_domain(planned: str, found: str, same: bool) -> None:
    assert same_host(planned, found) is same
