"""The variables of a rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from shapes import cluster, job

from launcher import env
from launcher.agent.rank_env import (
    RankAssignment,
    chosen_variables,
    defaults,
    plan_variables,
    threads_per_rank,
    torchrun_variables,
    wandb_variables,
)
from launcher.errors import InputError
from launcher.layout import Layout
from launcher.planner import Plan, read_plan, write_plan
from launcher.run.folder import RunFolder

ASSIGNMENT = RankAssignment(5, 16, 1, 4, 1, 4, "10.0.0.1", 29500, 2, 3, "run")


def test_a_rank_reads_back_what_it_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layout = Layout(tp=2, pp=2, dp=4, layer_split=(12, 12))
    plan = Plan(job(on=cluster(nodes=4, domains=(4,))), layout, estimate={}, why=())
    file = write_plan(plan, RunFolder(tmp_path).plan)
    for name, value in (
        torchrun_variables(ASSIGNMENT) | plan_variables(plan, run_folder=tmp_path, plan_path=file)
    ).items():
        monkeypatch.setenv(name, value)
    read = env.rank_env()
    assert (read.rank, read.world_size, read.local_rank, read.local_world_size) == (5, 16, 1, 4)
    assert (read.node, read.restarts) == (1, 2)
    assert (read.plan, read.run_dir) == (file, tmp_path)
    assert read_plan(file) == plan
    for axis in ("tp", "pp", "dp", "cp"):
        assert env.get(f"LAUNCHER_{axis.upper()}") == str(layout.degree(axis))


def test_wandb_runs_of_a_scripts_ranks_are_one_group_and_the_users_own_variables_win(tmp_path: Path) -> None:
    """Read by wandb's own settings."""
    settings = pytest.importorskip("wandb.sdk.wandb_settings").Settings()
    for rank, name in ((0, "mine"), (3, "mine-rank-3")):
        settings.update_from_env_vars(wandb_variables({}, run_folder=tmp_path / "mine", rank=rank))
        assert (settings.run_group, settings.run_name) == ("mine", name)
    given = {"WANDB_RUN_GROUP": "theirs", "WANDB_NAME": "one"}
    assert wandb_variables(given, run_folder=tmp_path, rank=1) == {}


def test_a_process_that_is_no_rank_says_what_it_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(InputError, match="RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE not set"):
        env.rank_env()


def planned(*, nodes: int, rails: int = 1) -> Plan:
    machine = replace(cluster(nodes=nodes, domains=(4,)), rails=rails)
    return Plan(job(on=machine), Layout(tp=1, pp=1, dp=4 * nodes, layer_split=(24,)), estimate={}, why=())


def test_one_connection_orders_tensor_parallel_collectives_on_gpus_but_for_sharded_parameters() -> None:
    name, machine = "CUDA_DEVICE_MAX_CONNECTIONS", cluster(nodes=1, domains=(4,))
    on_gpu = Plan(job(on=machine), Layout(tp=2, pp=1, dp=2, layer_split=(24,)), estimate={}, why=())
    assert machine.node.gpu.kind == "cuda"
    [chosen] = [variable for variable in chosen_variables(on_gpu, {}) if variable.name == name]
    assert (chosen.value, "tensor and context parallelism" in chosen.why) == ("1", True)
    assert name not in {variable.name for variable in chosen_variables(on_gpu, {name: "8"})}
    for layout in (replace(on_gpu.layout, zero_stage=3), planned(nodes=1).layout):
        assert name not in defaults(replace(on_gpu, layout=layout), {}, num_threads=1)


def test_loopback_is_for_one_node_only_and_the_users_own_values_win() -> None:
    one, two = planned(nodes=1), planned(nodes=2)
    assert defaults(one, {}, num_threads=3)["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in defaults(two, {}, num_threads=3)
    given = {"OMP_NUM_THREADS": "9", "GLOO_SOCKET_IFNAME": "eth0"}
    assert not set(given) & set(defaults(one, given, num_threads=3))


def test_rings_stay_on_a_rail_where_there_are_several_and_that_is_explained() -> None:
    assert "NCCL_CROSS_NIC" not in defaults(planned(nodes=2), {}, num_threads=1)
    assert "NCCL_CROSS_NIC" not in defaults(planned(nodes=1, rails=8), {}, num_threads=1)
    assert defaults(planned(nodes=2, rails=8), {}, num_threads=1)["NCCL_CROSS_NIC"] == "0"
    assert "NCCL_CROSS_NIC" not in defaults(planned(nodes=2, rails=8), {"NCCL_CROSS_NIC": "1"}, num_threads=1)
    assert all(variable.why for variable in chosen_variables(planned(nodes=2, rails=8), {}))


def test_ranks_use_the_agents_store_and_count_restarts_as_torchrun_does() -> None:
    # torch keys the store by the restart count
    assert torchrun_variables(ASSIGNMENT)["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    assert torchrun_variables(replace(ASSIGNMENT, restarts=7))["TORCHELASTIC_RESTART_COUNT"] == "7"


def test_a_rank_has_a_file_for_an_exception_where_its_agent_has_a_folder_for_it() -> None:
    assert "TORCHELASTIC_ERROR_FILE" not in torchrun_variables(ASSIGNMENT)
    assignment = replace(ASSIGNMENT, error_file=Path("/run/logs/rank-5-error-1.json"))
    assert torchrun_variables(assignment)["TORCHELASTIC_ERROR_FILE"] == "/run/logs/rank-5-error-1.json"


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(2, 8, 1), (128, 8, 16), (7, 2, 3), (1, 1, 1)])
def test_threads_share_out_the_cores(cores: int, ranks: int, threads: int) -> None:
    assert threads_per_rank(cores=cores, ranks=ranks) == threads
