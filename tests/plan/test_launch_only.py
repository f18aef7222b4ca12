"""Plans of a user's own program: nothing is estimated without model=, and nothing but its ranks can refuse it."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.agent.replan import plan_of_round
from launcher.agent.settings import LaunchSettings
from launcher.cli import main
from launcher.commands.common import plan_to_run
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.planner import Plan
from launcher.planner.record import Program, write_plan
from launcher.rendezvous.membership_change import MembershipChange
from launcher.report.html import page
from launcher.slurm.settings import SlurmSettings
from launcher.slurm.submit import warnings

NETWORK = ["cluster.node.num_nics=1", "cluster.node.nic_gbps=100"]


def planned(*words: str) -> Plan:
    settings = load(["script=train.py", *words])
    return plan_to_run(settings, settings.run_options, ["script=train.py", *words])


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 7, 8])
@pytest.mark.parametrize("nodes", [1, 3])
def test_any_number_of_ranks_is_data_parallel(ranks: int, nodes: int) -> None:
    plan = planned(f"launch.nproc_per_node={ranks}", f"launch.nnodes={nodes}", *NETWORK)
    assert plan.layout.brief().startswith(f"tp1 pp1 dp{ranks * nodes}")
    assert (plan.placement.num_nodes, plan.placement.ranks_per_node) == (nodes, ranks)
    assert plan.estimate == {}
    assert "no model= was given" in plan.why[0]


def test_nodes_need_no_network_in_the_cluster_file(capsys: pytest.CaptureFixture[str]) -> None:
    settings = load(["script=train.py", "launch.nnodes=2", "launch.nproc_per_node=4"])
    node = settings.job.cluster.node
    assert (settings.job.cluster.num_nodes, node.num_nics, node.nic_gbps) == (2, 1, 10)
    assert settings.notes == (
        "cpu says nothing of a network: 10 Gbit/s are assumed between nodes (cluster.node.nic_gbps)",
    )
    assert load(["script=train.py", "launch.nnodes=2", *NETWORK]).notes == ()
    assert load(["script=train.py", "cluster=dgx_a100_80g", "launch.nnodes=2"]).notes == ()
    with pytest.raises(InputError, match="needs a network between the nodes"):
        load(["launch.nnodes=2"])


def test_neither_batch_nor_memory_refuses_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned("cluster=dgx_a100_80g", "launch.nproc_per_node=5", "train.global_batch=16").layout.dp == 5
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("key", ["script=train.py", "module=pkg.train", "program=./run.sh"])
def test_the_plan_says_what_its_ranks_run(key: str) -> None:
    name, _, value = key.partition("=")
    settings = load([key])
    plan = plan_to_run(settings, settings.run_options, [key])
    assert (plan.kind, plan.options.program) == (name, Program(kind=name, target=value))


def test_degrees_that_are_pinned_stay_and_the_rest_is_data_parallel() -> None:
    plan = planned("launch.nproc_per_node=8", "layout.tp=2", "layout.cp=2")
    assert [plan.layout.degree(axis) for axis in ("tp", "cp", "pp", "dp")] == [2, 2, 1, 2]
    assert planned("launch.nproc_per_node=8", "layout.dp=3").layout.world_size == 3
    with pytest.raises(InputError, match=r"layout\.tp=2 × layout\.dp=2 does not fill the 5 ranks"):
        planned("launch.nproc_per_node=5", "layout.tp=2")
    with pytest.raises(InputError, match=r"layout\.dp=9 does not fill the 8 ranks"):
        planned("launch.nproc_per_node=8", "layout.dp=9")


def test_a_slice_of_a_gpu_is_one_rank() -> None:
    assert planned("cluster=a100_mig_1g").layout.world_size == 1


def test_with_a_model_it_is_estimated_as_data_parallel(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned("cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64")
    assert [plan.layout.degree(axis) for axis in ("tp", "pp", "cp", "dp")] == [1, 1, 1, 8]
    assert plan.estimate["step_time_s"] > 0
    assert planned("cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64", "layout.tp=2").layout.tp == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=gpt3_175b", "cluster=dgx_a100_80g", "train.global_batch=64"], "fit"),
        (["model.hidden=64", "launch.nproc_per_node=5", "train.global_batch=16"], "global_batch=16"),
    ],
)
def test_a_model_that_does_not_fit_is_a_warning(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(*words)
    assert plan.layout.dp == plan.job.cluster.max_ranks
    assert plan.estimate == {}
    err = capsys.readouterr().err
    assert said in err and "only the program knows" in err


def test_without_a_node_it_goes_on_with_fewer_ranks() -> None:
    plan = planned("launch.nproc_per_node=4", "launch.nnodes=3", *NETWORK)
    smaller = plan_of_round(Plan(**{**vars(plan), "hosts": ("a", "b", "c")}), MembershipChange(absent=(1,)))
    assert (smaller.layout.dp, smaller.hosts, smaller.estimate) == (8, ("a", "c"), {})


def test_its_page_shows_where_the_ranks_are_and_no_estimate() -> None:
    shown = page(planned("launch.nproc_per_node=3"))
    assert "train.py on cpu: 3 ranks" in shown
    assert "no model= was given" in shown
    assert "MFU" not in shown


def test_two_programs_are_refused() -> None:
    with pytest.raises(InputError, match=r"script=a\.py and module=b are given"):
        load(["script=a.py", "module=b"])


def test_our_own_numbers_win_over_those_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs" / "launch").mkdir(parents=True)
    (tmp_path / "configs" / "launch" / "pair.yaml").write_text("nproc_per_node: 2\n")
    monkeypatch.chdir(tmp_path)
    assert planned("launch=pair").layout.dp == 2
    assert planned("launch=pair", "launch.nproc_per_node=3").layout.dp == 3


def test_a_batch_job_on_the_default_cluster_is_said_to_ask_for_no_gpu() -> None:
    plan, launch = planned("launch.nproc_per_node=8"), LaunchSettings()
    said = [line for line in warnings(plan, SlurmSettings(requeue="always"), launch) if "asks Slurm for no GPU" in line]
    assert said and "cluster=" in said[0]
    assert not any("no GPU" in line for line in warnings(plan, SlurmSettings(gpus_per_node=8), launch))
    on_gpus = planned("cluster=dgx_a100_80g", "launch.nproc_per_node=8")
    assert not any("no GPU" in line for line in warnings(on_gpus, SlurmSettings(), launch))


@pytest.mark.parametrize("words", [["script=train.py"], ["recipe=gemm"]], ids=["a script", "a recipe that measures"])
def test_a_plan_without_a_model_is_shown_and_exported_without_that_of_the_defaults(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """gpt_tiny, the default, was written into start scripts, and its parameters were shown."""
    settings = load([*words, "cluster=cpu"])
    file = write_plan(plan_to_run(settings, settings.run_options, words), tmp_path / "plan.json")
    assert main(["plan", f"plan={file}"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "no model, on cpu: 8 CPU ranks, 1 node"
    for tool in ("megatron", "nemo", "torchtitan"):
        assert main(["export", f"plan={file}", f"to={tool}"]) == 2
        assert f"this plan has no model, and to={tool} writes one" in capsys.readouterr().err
    assert main(["export", f"plan={file}", "to=torchrun"]) == 0
