"""The variables of a rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from shapes import cluster, job

from launcher import env
from launcher.agent.fabric_variables import HCAS, SOCKETS, TOPOLOGY, left_unset, near_adapters
from launcher.agent.rank_env import (
    RankAssignment,
    chosen_variables,
    defaults,
    plan_variables,
    threads_per_rank,
    torchrun_variables,
    wandb_variables,
)
from launcher.cli import main
from launcher.config.compose import load
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


NAMES = tuple(f"mlx5_{number}" for number in range(8))


def on_adapters(**shape: object) -> Plan:
    """A plan on two nodes of eight GPUs and NICs with names."""
    machine = cluster(nodes=2)
    node = replace(machine.node, **{"nic_names": NAMES, **shape})  # type: ignore[arg-type]
    layout = Layout(tp=1, pp=1, dp=2 * node.num_gpus, layer_split=(24,))
    return Plan(job(on=replace(machine, node=node)), layout, estimate={}, why=())


def test_every_rank_gets_the_nodes_adapters_for_nccl_and_its_nearest_for_ucx() -> None:
    crossed = on_adapters(nic_of_gpu=(1, 1, 0, 0, 3, 3, 2, 2))
    for rank, nic in enumerate((1, 1, 0, 0, 3, 3, 2, 2)):
        found = defaults(crossed, {}, num_threads=1, local_rank=rank)
        assert found["NCCL_IB_HCA"] == "=" + ",".join(NAMES)
        assert found["UCX_NET_DEVICES"] == f"mlx5_{nic}:1"
    two_each = on_adapters(num_gpus=4, domains=((0, 1, 2, 3),), nic_names=("a:2", *NAMES[1:]))
    values = [defaults(two_each, {}, num_threads=1, local_rank=rank)["UCX_NET_DEVICES"] for rank in range(4)]
    assert values == ["a:2,mlx5_1:1", "mlx5_2:1,mlx5_3:1", "mlx5_4:1,mlx5_5:1", "mlx5_6:1,mlx5_7:1"]
    shared = on_adapters(num_nics=2, nic_names=("a", "b"))
    assert [near_adapters(shared.job.cluster.node, rank) for rank in (0, 3, 4, 7)] == [("a",), ("a",), ("b",), ("b",)]


def test_adapters_are_chosen_where_they_are_named_and_used_and_the_users_own_values_win() -> None:
    names = {"NCCL_IB_HCA", "UCX_NET_DEVICES"}
    named = on_adapters()
    machine = named.job.cluster
    one = replace(named, job=job(on=replace(machine, num_nodes=1)), layout=replace(named.layout, dp=8))
    efa = replace(named, job=job(on=replace(machine, fabric="efa")))
    assert names <= {*defaults(named, {}, num_threads=1)}
    for plan in (on_adapters(nic_names=None), one, efa):
        assert not names & {*defaults(plan, {}, num_threads=1)}
    assert not names & {*defaults(named, {}, num_threads=1, left_unset=names)}
    given = dict.fromkeys(names, "mine")
    assert not names & {*defaults(named, given, num_threads=1)}


def test_what_this_machine_lacks_is_named_and_left_unset(tmp_path: Path) -> None:
    plan = on_adapters(nic_names=("mlx5_0:1", *NAMES[1:]), interface="ib0", nccl_topo_file=f"{tmp_path}/topo.xml")
    assert {*HCAS, *SOCKETS, TOPOLOGY} <= {*defaults(plan, {}, num_threads=1)}
    (tmp_path / "topo.xml").touch()
    assert left_unset(plan, adapters=NAMES, interfaces=["lo", "ib0"]) == {}
    found = left_unset(plan, adapters=[name for name in NAMES if name != "mlx5_3"], interfaces=["ib0"])
    assert {*found} == {*HCAS} and "has mlx5_3, and this machine mlx5_0, mlx5_1, mlx5_2, mlx5_4" in found[HCAS[0]]
    (tmp_path / "topo.xml").unlink()
    found = left_unset(plan, adapters=[], interfaces=["lo"])
    assert {*found} == {*HCAS, *SOCKETS, TOPOLOGY} and "and this machine no RDMA device" in found[HCAS[0]]
    assert "is ib0, and this machine has lo" in found[SOCKETS[0]] and "topo.xml, which is not" in found[TOPOLOGY]
    assert left_unset(on_adapters(nic_names=None), adapters=[], interfaces=[]) == {}


def test_sockets_take_the_interface_between_nodes_and_nccl_the_topology_file() -> None:
    several = on_adapters(nic_names=None, interface="eth1", nccl_topo_file="/opt/topo.xml")
    found = defaults(several, {}, num_threads=1)
    expected = {"NCCL_SOCKET_IFNAME": "=eth1", "GLOO_SOCKET_IFNAME": "eth1", "NCCL_TOPO_FILE": "/opt/topo.xml"}
    assert expected.items() <= found.items() and not {*HCAS} & {*found}
    cpu = replace(several.job.cluster.node, gpu=replace(several.job.cluster.node.gpu, kind="cpu"))
    on_cpus = replace(several, job=job(on=replace(several.job.cluster, node=cpu)))
    found = defaults(on_cpus, {}, num_threads=1)
    assert found["GLOO_SOCKET_IFNAME"] == "eth1" and not {"NCCL_SOCKET_IFNAME", "NCCL_TOPO_FILE"} & {*found}
    one = replace(several, job=job(on=replace(several.job.cluster, num_nodes=1)), layout=replace(several.layout, dp=8))
    found = defaults(one, {}, num_threads=1)
    assert found["GLOO_SOCKET_IFNAME"] == "lo" and found["NCCL_TOPO_FILE"] == "/opt/topo.xml"
    assert not expected.keys() & {*defaults(several, expected, num_threads=1)}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[mlx5_0]", "names 1 NICs, and a node has 8: name each once"),
        ("[a,a,b,c,d,e,f,g]", "names 7 NICs, and a node has 8"),
        ("[a,b,c,d,e,f,g,'h;reboot']", "'h;reboot' is no RDMA device"),
        ("[a,b,c,d,e,f,g,'^h']", "is no RDMA device"),
    ],
)
def test_names_of_adapters_that_cannot_be_are_refused(value: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        load(["cluster=dgx_a100_80g", "model=gpt3_350m", f"cluster.node.nic_names={value}"])
    assert said in str(refused.value)


def test_a_dry_run_shows_the_adapters_of_every_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.py").write_text("")
    words = [f"script={tmp_path}/train.py", "cluster=dgx_a100_80g", "cluster.num_nodes=2", "dry_run=true"]
    words += [f"cluster.node.nic_names=[{','.join(NAMES)}]", "cluster.node.nic_of_gpu=[1,0,3,2,5,4,7,6]"]
    assert main(["submit", *words]) == 0
    said = capsys.readouterr().err
    assert f"NCCL_IB_HCA=={','.join(NAMES)}: the adapters of cluster.node.nic_names" in said
    assert "UCX_NET_DEVICES=mlx5_1:1 on local rank 0, mlx5_0:1 on local rank 1, mlx5_3:1 on local rank 2" in said


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
