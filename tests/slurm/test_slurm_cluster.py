"""Whole jobs on a real Slurm: placement, losses, requeue, node failure, cancel, hostile names, secrets."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import (
    ACCOUNTING,
    NEWER,
    NODES,
    ROOT,
    SIDE,
    STEPPER,
    Slurm,
    can_network,
    events,
    ledger,
    steps,
    wait_for,
    wait_until,
)
from own_handler import MORE

from launcher import process
from launcher.run.folder import RunFolder
from launcher.slurm import life
from launcher.slurm.life import SubmittedRun, cancel, read_log, status

# One group: with pytest-xdist's --dist loadgroup one worker runs them all, instead of two that wait for each other.
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

OWN_HANDLER = Path(__file__).parent / "own_handler.py"
SECRET = "0123456789abcdef0123456789abcdef01234567"
GPT = ("train.steps=3", "layout.tp=2", "layout.pp=2", "layout.dp=2", "layout.micro_batch=2", "layout.virtual_stages=1")
ONE_GPU = ("cluster.node.num_gpus=1", "layout.tp=1", "layout.pp=1", "layout.dp=1", "layout.micro_batch=2")


@pytest.fixture(scope="module")
def limited(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Slurm, Path, str]:
    """A job with a time limit of two minutes, on nodes of its own: it runs while other tests do."""
    slurm = Slurm(cluster.folder, tmp_path_factory.mktemp("limited"))
    run = slurm.runs / "limit"
    words = ("launch.time=2", "launch.signal_lead_s=45", "launch.grace_s=40", f"launch.nodelist={SIDE}")
    return slurm, run, slurm.submit_steps(run, *words, nodes=2, args=["5000", "after-resume=10"])


@pytest.fixture
def slurm(
    cluster: Slurm, limited: tuple[Slurm, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Slurm]:
    """The cluster with idle nodes, but for those of the limited job."""
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.environment[name])
    yield Slurm(cluster.folder, tmp_path)
    cluster.clear(but=limited[2])


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def ranks_of(job_id: str) -> list[int]:
    """The processes that run the gpt recipe in a job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # of a process that has ended
            if f"SLURM_JOB_ID={job_id}\0".encode() in (folder / "environ").read_bytes():
                found += [int(folder.name)] * (b"gpt.py" in (folder / "cmdline").read_bytes())
    return found


def test_a_gpt_on_four_nodes_sits_where_the_plan_says_and_learns_as_it_does_here(slurm: Slurm) -> None:
    run = slurm.runs / "gpt $(touch pwned) 'q' \"d\" `touch pwned`;\n%j end"
    job_id = slurm.submit(run, *GPT, "launch.gpus_per_node=2", "launch.gpu_type=a100", WANDB_API_KEY=SECRET)
    slurm.wait(job_id, "COMPLETED")

    hosts = json.loads(RunFolder(run).present_plan.read_text())["hosts"]
    leaf_of = {"node10": 1, "node2": 1, "node1": 2, "node9": 2}
    assert [leaf_of[host] for host in hosts] in ([1, 1, 2, 2], [2, 2, 1, 1])
    [step] = events(run, "slurm_step")
    [placed] = events(run, "slurm_placed")
    assert placed["hosts"] == hosts
    assert [json.loads((run / "nodes" / f"node-{n}.json").read_text())["host"] for n in range(4)] == hosts
    seats = {(line["node"], line["rank"]) for line in ledger(run) if line.get("phase") == "script"}
    assert seats == {(rank // 2, rank) for rank in range(8)}
    overhead = [float(str(e["seconds"])) for n in ("slurm_placed", "slurm_preflight") for e in events(run, n)]
    assert len(overhead) == 2

    local = slurm.runs / "local"
    slurm.launcher("run", "cluster=cpu", GPT[0], *ONE_GPU, f"run_dir={local}")
    assert losses(run) == pytest.approx(losses(local), rel=1e-5)

    described = slurm.run("scontrol", "show", "job", job_id).stdout
    assert SECRET not in described + slurm.run("scontrol", "write", "batch_script", job_id, "-").stdout
    everywhere = subprocess.run(
        ["grep", "-r", "-l", "-a", SECRET, str(slurm.runs), str(slurm.folder)], capture_output=True
    )
    assert everywhere.stdout == b""
    assert not list(slurm.runs.rglob("pwned")) and not (ROOT / "pwned").exists()
    assert "srun" in str(step["argv"])


def test_a_preempted_job_comes_back_on_other_gpus_and_no_loss_changes(slurm: Slurm) -> None:
    run, local = slurm.runs / "preempted", slurm.runs / "uninterrupted"
    other = slurm.runs / "configs" / "cluster" / "other.yaml"
    other.parent.mkdir(parents=True)
    other.write_text("defaults: [testcluster, _self_]\nname: other\nnode: {num_gpus: 1, domain_size: 1}\n")
    shape = ("cluster.node.num_gpus=1", "cluster.node.domain_size=1", "cluster.num_nodes=2")
    job = ("train.steps=40", "train.checkpoint_every=100", "layout.tp=1", "layout.pp=1", "layout.dp=2")
    job += ("train.global_batch=4",)
    kinds = ("launch.replan=any", "launch.min_nodes=2", "launch.gpu_clusters={h100:other}", "launch.exclude=side[1-2]")
    job_id = slurm.submit(run, *shape, *job, *kinds)
    wait_for(run / "metrics.jsonl", '"step": 2')
    process.signal_all(ranks := ranks_of(job_id), signal.SIGSTOP)  # they would be done before the preemption
    assert len(ranks) == 2
    assert not set(json.loads(RunFolder(run).present_plan.read_text())["hosts"]) & set(NEWER.split(","))
    wanted = ",".join(NODES)
    high = slurm.run(
        "sbatch", "--parsable", "-p", "high", "-w", wanted, "-o", "/dev/null", "--wrap", "sleep 300"
    ).stdout
    wait_until(lambda: "PreemptTime=None" not in slurm.run("scontrol", "show", "job", job_id).stdout)
    process.signal_all(ranks, signal.SIGCONT)
    slurm.wait(job_id, "COMPLETED")
    assert slurm.state(high.strip()) == "RUNNING"
    plan = json.loads(RunFolder(run).present_plan.read_text())
    assert (plan["cluster"]["name"], sorted(plan["hosts"])) == ("other", NEWER.split(","))
    assert "2 nodes of other instead of 2 of testcluster" in slurm.logs()
    assert len(events(run, "slurm_start")) == 2
    slurm.launcher("run", "cluster=cpu", "cluster.node.num_gpus=2", *job, f"run_dir={local}")
    assert len(losses(run)) == 40  # no step twice, none left out
    assert losses(run) == pytest.approx(losses(local), rel=1e-5)


def test_a_dead_node_brings_the_job_back_on_the_nodes_that_are_left(slurm: Slurm) -> None:
    run = slurm.runs / "node failure"
    words = ["launch.replan=shrink", "launch.min_nodes=2", "train.global_batch=12"]
    words += [f"launch.exclude={SIDE},{NEWER},node10"]  # nothing replaces the node that is lost
    job_id = slurm.submit_steps(run, *words, nodes=3, args=["40", "checkpoint-every=5"])
    wait_for(run / "steps.jsonl", '"step": 6')
    hosts = json.loads(RunFolder(run).present_plan.read_text())["hosts"]
    victim = next(host for host in hosts if host != "node1")  # the batch script runs on Slurm's first
    slurm.testcluster("kill-node", victim)
    slurm.wait(job_id, "COMPLETED")
    done, plan = steps(run), json.loads(RunFolder(run).present_plan.read_text())
    assert victim not in plan["hosts"]
    assert len(plan["hosts"]) == 2
    assert done[0]["world"] == 3
    assert done[-1] == {"step": 40, "start": done[-1]["start"], "world": 2}
    assert plan["training"]["global_batch"] == 12


def test_spares_take_the_place_of_a_slow_node_and_of_a_dead_one(slurm: Slurm) -> None:
    if not can_network():
        pytest.skip("a node's network cannot be slowed down here: that takes network namespaces and tc (iproute2)")
    run, slow = slurm.runs / "spares", "node9"
    slurm.testcluster("slow-node", slow, "5mbit")
    words = ["launch.spares=2", "launch.check_bandwidth=true", "launch.bandwidth_threshold=0.2"]
    job_id = slurm.submit_steps(run, *words, nodes=2, args=["40", "checkpoint-every=5"])
    wait_for(run / "steps.jsonl", '"step": 6')
    [measured] = events(run, "slurm_bandwidth")
    assert (measured["bad"], float(str(measured["seconds"])) < 60) == ([slow], True)
    hosts = json.loads(RunFolder(run).present_plan.read_text())["hosts"]
    victim = next(host for host in hosts if host != "node1")
    slurm.testcluster("kill-node", victim)
    slurm.wait(job_id, "COMPLETED")
    [replaced] = events(run, "slurm_replaced")
    assert replaced["lost"] == [victim]
    assert not {slow, victim} & set(json.loads(RunFolder(run).present_plan.read_text())["hosts"])
    assert len(events(run, "slurm_start")) == 1  # in the same allocation, without a requeue
    assert steps(run)[-1] == {"step": 40, "start": 0, "world": 2}


def test_launcher_check_in_an_allocation_names_the_slow_node_and_the_exclude_to_use(slurm: Slurm) -> None:
    if not can_network():
        pytest.skip("a node's network cannot be slowed down here: that takes network namespaces and tc (iproute2)")
    slurm.testcluster("slow-node", "node2", "5mbit")
    words = ["cluster=testcluster", "cluster.node.num_gpus=1", "cluster.node.domain_size=1"]
    keys = ["launch.check_bandwidth=true", "launch.bandwidth_threshold=0.2", f"run_dir={slurm.runs / 'check'}"]
    argv = [sys.executable, "-m", "launcher.cli", "check", *words, *keys]
    done = slurm.run("salloc", "-w", "node1,node2,node10", *argv, check=False)
    assert done.returncode == 1, done.stderr
    assert "node2  problem  bandwidth: slow: between" in done.stdout
    assert "sbatch --exclude=node2\n" in done.stderr


def test_an_application_error_ends_the_job_and_is_explained(slurm: Slurm) -> None:
    run = slurm.runs / "error"
    job_id = slurm.submit_steps(run, nodes=2, args=["50", "fail=3"])
    slurm.wait(job_id, "FAILED")
    found = SubmittedRun.find(str(run))
    reported = status(found)
    assert (reported.job_id, reported.state, reported.restarts) == (job_id, "FAILED", 0)
    log = b"".join(read_log(found, rank=None, following=True)).decode()
    assert "this job fails by itself" in log
    assert "not requeued" in log


def test_scancel_and_scontrol_requeue_end_as_documented(slurm: Slurm) -> None:
    run = slurm.runs / "cancelled"
    job_id = slurm.submit_steps(run, nodes=1, args=["500"])
    wait_for(run / "steps.jsonl", '"step": 2')
    slurm.run("scontrol", "requeue", job_id)
    wait_for(run / "steps.jsonl", '"start": 1')
    assert cancel(SubmittedRun.find(str(run))) == f"job {job_id} is being cancelled"
    slurm.wait(job_id, "CANCELLED")
    assert cancel(SubmittedRun.find(job_id)) == f"job {job_id} has ended already: CANCELLED"
    wait_until(lambda: bool(events(run, "slurm_end")))  # Slurm names the state before the job has left
    assert "ended by Slurm" in str(events(run, "slurm_end")[0]["why"])


def test_a_sweep_is_one_array_with_one_table(slurm: Slurm) -> None:
    folder = slurm.runs / "sweep"
    shape = ["cluster.num_nodes=1", "cluster.node.num_gpus=1", "cluster.node.domain_size=1"]
    words = ["cluster=testcluster", *shape, "train.seed=1,2", f"script={STEPPER}", f"run_dir={folder}"]
    job_id = slurm.launcher("submit", "-m", *words, "launch.exclude=side[1-2]", "--", "5").stdout.strip()
    for task in ("0", "1"):
        slurm.wait(f"{job_id}_{task}", "COMPLETED")
    reported = slurm.launcher("status", str(folder)).stdout
    assert (folder / "results.txt").read_text().strip() in reported
    assert [line.split()[1] for line in reported.splitlines() if line[:1].isdigit()] == ["done", "done"]
    assert [len(steps(folder / task)) for task in ("0", "1")] == [5, 5]


def test_a_job_that_slurm_has_forgotten_is_known_by_its_accounting(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ACCOUNTING:
        pytest.skip("no accounting here: see slurm/testcluster --help for what to install")
    job_id = slurm.run("sbatch", "--parsable", "-N2", "-o", "/dev/null", "--wrap", "exit 3").stdout.strip()
    with pytest.raises(AssertionError, match="FAILED"):
        slurm.wait(job_id, "COMPLETED")
    monkeypatch.setattr(life, "_from_squeue", lambda job_id: None)
    deadline = time.monotonic() + 30
    while (reported := status(SubmittedRun(job_id, None))).state != "FAILED" and time.monotonic() < deadline:
        time.sleep(0.2)  # slurmctld reports to slurmdbd with a delay
    assert (reported.state, reported.exit_code, reported.num_nodes, reported.source) == ("FAILED", "3:0", 2, "sacct")


def test_a_job_is_checkpointed_and_requeued_before_its_time_limit(limited: tuple[Slurm, Path, str]) -> None:
    slurm, run, job_id = limited
    slurm.wait(job_id, "COMPLETED")
    done = steps(run)
    assert [line["step"] for line in done] == list(range(1, len(done) + 1))  # nothing twice, nothing left out
    assert {line["start"] for line in done} >= {0, 1}
    assert len(events(run, "slurm_start")) == done[-1]["start"] + 1
    assert "requeued" in str(events(run, "slurm_end")[0]["why"])


def test_a_script_with_a_slow_handler_keeps_its_checkpoint_whatever_stops_it_and_comes_back(slurm: Slurm) -> None:
    """TERM to its tasks, a time limit (USR1 to its batch script), a preemption (TERM and USR1): no step is lost."""
    shape = ("cluster.num_nodes=1", "cluster.node.num_gpus=2", "launch.grace_s=60", "launch.signal_lead_s=90")
    jobs = {}
    for name in ("limit", "term", "preempted"):
        folder = slurm.runs / name
        (folder / "own").mkdir(parents=True)
        words = [f"script={OWN_HANDLER}", *shape, f"launch.progress={folder / 'own' / 'saved'}", "launch.time=60"]
        jobs[name] = slurm.submit(folder / "run", *words, args=[str(folder / "own")])
    for name in jobs:
        wait_for(slurm.runs / name / "own" / "steps.jsonl", '"rank": 1, "step": 3')
    minutes = slurm.run("squeue", "-h", "-j", jobs["limit"], "-o", "%M").stdout.partition(":")[0]
    slurm.run("scontrol", "update", f"JobId={jobs['limit']}", f"TimeLimit={int(minutes) + 2}")
    slurm.run("scancel", "--signal=TERM", jobs["term"])
    node = slurm.run("squeue", "-h", "-j", jobs["preempted"], "-o", "%N").stdout.strip()
    slurm.run("sbatch", "-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 15")
    wait_for(slurm.runs / "limit" / "own" / "signals.jsonl", '"rank": 1')
    slurm.run("scontrol", "update", f"JobId={jobs['limit']}", "TimeLimit=60")  # the next start has time

    signals = {"limit": {"SIGUSR1"}, "term": {"SIGTERM"}, "preempted": {"SIGTERM", "SIGUSR1"}}
    for name, job_id in jobs.items():
        slurm.wait(job_id, "COMPLETED")
        own = slurm.runs / name / "own"
        came = [json.loads(line) for line in (own / "signals.jsonl").read_text().splitlines()]
        assert sorted(line["rank"] for line in came) == [0, 1], name  # each rank was asked once
        assert {line["signal"] for line in came} <= signals[name], name
        done = [json.loads(line) for line in (own / "steps.jsonl").read_text().splitlines()]
        for rank in (0, 1):
            mine = [line["step"] for line in done if line["rank"] == rank]
            assert mine == list(range(1, len(mine) + 1)), name  # none twice, none left out
        assert sum(line["resumed"] for line in done) == 2 * MORE, name


def test_a_job_runs_from_the_code_as_it_was_at_its_submission(slurm: Slurm) -> None:
    script, helper, run = slurm.runs / "train.py", slurm.runs / "helper.py", slurm.runs / "runs" / "waits"
    script.write_text("import helper, os\nprint(helper.WORD, os.getcwd(), open('words.txt').read())\n")
    helper.write_text("WORD = 'submitted'\n")
    (slurm.runs / "words.txt").write_text("before")
    slurm.run("git", "init", "-q")
    words = ("cluster.num_nodes=2", "cluster.node.num_gpus=1", "launch.snapshot=true", "launch.extra=[--hold]")
    job_id = slurm.submit(run, f"script={script}", *words)
    script.write_text("raise SystemExit('edited')\n")
    helper.write_text("WORD = 'edited'\n")
    (slurm.runs / "words.txt").write_text("edited")
    slurm.run("scontrol", "release", job_id)
    slurm.wait(job_id, "COMPLETED")
    for rank in (0, 1):
        assert f"submitted {run / 'code'} before" in (run / "logs" / f"rank-{rank}.log").read_text()
