"""Whole jobs on a real Slurm: placement, losses, requeue, node failure, cancel, hostile names, secrets."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from slurm_lab import (
    ACCOUNTING,
    NEWER,
    NODES,
    ROOT,
    SIDE,
    SMALL,
    STEPPER,
    Slurm,
    events,
    ledger,
    losses,
    steps,
    wait_for,
    wait_until,
)

from launcher import process
from launcher.run.folder import RunFolder
from launcher.slurm import life
from launcher.slurm.life import SubmittedRun, cancel, read_log, status

# One group: with pytest-xdist's --dist loadgroup one worker runs them all, instead of two that wait for each other.
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

OWN_HANDLER = Path(__file__).parent / "own_handler.py"
SECRET = "0123456789abcdef0123456789abcdef01234567"
GPT = (*SMALL, "layout.tp=2", "layout.pp=2", "layout.dp=2", "layout.micro_batch=2", "layout.virtual_stages=1")


@pytest.fixture(scope="module")
def limited(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Slurm, Path, str]:
    """A job with a time limit of two minutes, on nodes of its own: it runs while other tests do."""
    slurm = Slurm(cluster.folder, tmp_path_factory.mktemp("limited"))
    run = slurm.runs / "limit"
    words = ("launch.time=2", "launch.signal_lead_s=45", "launch.grace_s=40", "launch.nodelist=side1,side2")
    return slurm, run, slurm.submit_steps(run, *words, nodes=2, args=["5000", "after-resume=10"])


@pytest.fixture(scope="module")
def stopped(
    cluster: Slurm, limited: tuple[Slurm, Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[Path]]:
    """A job that is stopped in three ways, on a node of its own: it runs while other tests do."""
    slurm = Slurm(cluster.folder, tmp_path_factory.mktemp("stopped"))
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(stop_three_times, slurm, "side3")


def stop_three_times(slurm: Slurm, node: str) -> Path:
    """Stop a script with a handler of its own before its time limit, by TERM, and by preemption; let it end then."""
    own = slurm.runs / "own"
    own.mkdir()
    shape = ("cluster.num_nodes=1", "cluster.node.num_gpus=2", "launch.grace_s=60", "launch.signal_lead_s=90")
    words = [f"script={OWN_HANDLER}", *shape, f"launch.progress={own / 'saved'}", "launch.time=60"]
    job_id = slurm.submit(slurm.runs / "run", *words, f"launch.nodelist={node}", args=[str(own)])

    def in_start(number: int) -> None:
        wait_until(lambda: all(len(steps_of(own, rank, start=number)) >= 3 for rank in (0, 1)))

    in_start(0)
    minutes = slurm.run("squeue", "-h", "-j", job_id, "-o", "%M").stdout.partition(":")[0]
    slurm.run("scontrol", "update", f"JobId={job_id}", f"TimeLimit={int(minutes) + 2}")
    wait_for(own / "signals.jsonl", '"rank": 1')
    slurm.run("scontrol", "update", f"JobId={job_id}", "TimeLimit=60")  # the next start has time
    in_start(1)
    slurm.run("scancel", "--signal=TERM", job_id)
    in_start(2)
    slurm.run("sbatch", "-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    in_start(3)
    (own / "end").touch()
    slurm.wait(job_id, "COMPLETED")
    return own


def steps_of(own: Path, rank: int, *, start: int) -> list[int]:
    """The steps that a rank of own_handler.py has done in a start of its job."""
    lines = (own / "steps.jsonl").read_text().splitlines() if (own / "steps.jsonl").exists() else []
    done = [json.loads(line) for line in lines]
    return [line["step"] for line in done if (line["rank"], line["start"]) == (rank, start)]


@pytest.fixture
def slurm(
    cluster: Slurm,
    limited: tuple[Slurm, Path, str],
    stopped: Future[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Slurm]:
    """The cluster with idle nodes, but for those of the jobs that run while other tests do."""
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.environment[name])
    yield Slurm(cluster.folder, tmp_path)
    cluster.clear()


def ranks_of(job_id: str) -> list[int]:
    """The processes that run the gpt recipe in a job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # of a process that has ended
            if f"SLURM_JOB_ID={job_id}\0".encode() in (folder / "environ").read_bytes():
                found += [int(folder.name)] * (b"gpt.py" in (folder / "cmdline").read_bytes())
    return found


def test_a_gpt_on_four_nodes_sits_where_the_plan_says_and_learns_as_it_does_here(
    slurm: Slurm, losses_here: list[float]
) -> None:
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

    assert losses(run) == pytest.approx(losses_here, rel=1e-5)

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
    other.write_text("defaults: [testcluster, _self_]\nname: other\nnode: {num_gpus: 2, domain_size: 2}\n")
    shape = ("cluster.node.num_gpus=2", "cluster.node.domain_size=2", "cluster.num_nodes=1")
    job = ("train.steps=60", "train.checkpoint_every=100", "layout.tp=1", "layout.pp=1", "layout.dp=2")
    job += ("train.global_batch=4", "model.layers=2", "model.seq_len=64")
    kinds = ("launch.replan=any", "launch.min_nodes=1", "launch.gpu_clusters={h100:other}", "launch.exclude=side[1-3]")
    job_id = slurm.submit(run, *shape, *job, *kinds)
    wait_until(lambda: len(ranks_of(job_id)) == 2)
    ranks = ranks_of(job_id)
    wait_for(run / "metrics.jsonl", '"step": 2', poll_s=0.01)
    process.signal_all(ranks, signal.SIGSTOP)  # they would be done before the preemption
    assert ranks_of(job_id) == ranks
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
    assert (plan["cluster"]["name"], len(plan["hosts"])) == ("other", 1)
    assert plan["hosts"][0] in NEWER.split(",")
    assert "1 node of other instead of 1 of testcluster" in slurm.logs()
    assert len(events(run, "slurm_start")) == 2
    slurm.launcher("run", "cluster=cpu", "cluster.node.num_gpus=2", *job, f"run_dir={local}")
    assert len(losses(run)) == 60  # no step twice, none left out
    assert losses(run) == pytest.approx(losses(local), rel=1e-5)


def test_a_dead_node_brings_the_job_back_on_the_nodes_that_are_left(slurm: Slurm) -> None:
    run = slurm.runs / "node failure"
    words = ["launch.replan=shrink", "launch.min_nodes=1", "train.global_batch=12"]
    words += [f"launch.exclude={SIDE},{NEWER},node9,node10"]  # nothing replaces the node that is lost
    job_id = slurm.submit_steps(run, *words, nodes=2, args=["5000", "checkpoint-every=5", "after-resume=5"])
    wait_for(run / "steps.jsonl", '"step": 6')
    assert len(json.loads(RunFolder(run).present_plan.read_text())["hosts"]) == 2
    slurm.kill_node("node2")  # the batch script runs on Slurm's first
    slurm.wait(job_id, "COMPLETED")
    done, plan = steps(run), json.loads(RunFolder(run).present_plan.read_text())
    assert plan["hosts"] == ["node1"]
    assert done[0]["world"] == 2
    first = next(line for line in done if line["start"])
    assert first["step"] > 5 and (first["step"] - 1) % 5 == 0  # from a checkpoint
    assert done[-1] == {"step": first["step"] + 4, "start": first["start"], "world": 1}
    assert plan["training"]["global_batch"] == 12


def test_a_node_that_comes_back_is_reached_at_once_by_those_that_knew_it(slurm: Slurm) -> None:
    """As a machine that keeps its hardware address: the others send to the one that they know for up to a minute."""
    ask = f"import socket; socket.create_connection({slurm.address('node2')}, timeout=5)"
    argv, before = (*slurm.inside("node1"), sys.executable, "-c", ask), slurm.links()
    slurm.run(*argv)
    slurm.kill_node("node2")
    slurm.clear()
    assert slurm.links() == before  # the bridge has its own, too, whatever node is gone
    slurm.run(*argv)


def test_spares_take_the_place_of_a_slow_node_and_of_a_dead_one(slurm: Slurm) -> None:
    run, slow, end = slurm.runs / "spares", "node9", slurm.runs / "end"
    words = ["launch.spares=2", "launch.check_bandwidth=true", "launch.bandwidth_threshold=0.2"]
    with slurm.slowed(slow, "5mbit"):
        job_id = slurm.submit_steps(run, *words, nodes=2, args=["5000", "checkpoint-every=5", f"until={end}"])
        wait_for(run / "steps.jsonl", '"step": 6')
    assert [event["bad"] for event in events(run, "slurm_preflight")] == [[]], slurm.logs()
    [measured] = events(run, "slurm_bandwidth")
    assert (measured["bad"], float(str(measured["seconds"])) < 60) == ([slow], True)
    hosts = json.loads(RunFolder(run).present_plan.read_text())["hosts"]
    victim = next(host for host in hosts if host != "node1")
    slurm.kill_node(victim)
    wait_until(lambda: bool(events(run, "slurm_replaced")))
    before = len(steps(run))
    wait_until(lambda: len(steps(run)) >= before + 3)
    end.touch()
    slurm.wait(job_id, "COMPLETED")
    [replaced] = events(run, "slurm_replaced")
    assert replaced["lost"] == [victim]
    assert not {slow, victim} & set(json.loads(RunFolder(run).present_plan.read_text())["hosts"])
    assert len(events(run, "slurm_start")) == 1  # in the same allocation, without a requeue
    done = [line["step"] for line in steps(run)]
    assert (done[before] - 1) % 5 == 0 and done[before:] == list(range(done[before], done[-1] + 1))  # from a checkpoint
    assert steps(run)[-1] == {"step": done[-1], "start": 0, "world": 2}


def test_launcher_check_in_an_allocation_names_the_slow_node_and_the_exclude_to_use(slurm: Slurm) -> None:
    words = ["cluster=testcluster", "cluster.node.num_gpus=1", "cluster.node.domain_size=1"]
    keys = ["launch.check_bandwidth=true", "launch.bandwidth_threshold=0.2", f"run_dir={slurm.runs / 'check'}"]
    argv = [sys.executable, "-m", "launcher.cli", "check", *words, *keys]
    with slurm.slowed("node2", "5mbit"):
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


def test_a_sweep_is_one_array_with_one_table_and_says_which_member_was_cancelled(slurm: Slurm) -> None:
    folder, end = slurm.runs / "sweep", slurm.runs / "end"
    shape = ["cluster.num_nodes=1", "cluster.node.num_gpus=1", "cluster.node.domain_size=1"]
    words = ["cluster=testcluster", *shape, "train.seed=1,2", f"script={STEPPER}", f"run_dir={folder}"]
    words += ["launch.exclude=side[1-3]", "--", "5000", f"until={end}"]
    job_id = slurm.launcher("submit", "-m", *words).stdout.strip()
    for task in ("0", "1"):
        wait_for(folder / task / "steps.jsonl", "step")
    slurm.run("scancel", f"{job_id}_0")
    with pytest.raises(AssertionError, match="CANCELLED"):
        slurm.wait(f"{job_id}_0", "COMPLETED")
    reported = json.loads(slurm.launcher("status", str(folder), "output=json").stdout)
    states = [row["state"] for row in reported["runs"]]
    assert "ended by Slurm" in states[0]
    assert states[1] == "running"
    end.touch()
    slurm.wait(f"{job_id}_1", "COMPLETED")
    said = slurm.launcher("status", str(folder), check=False).stdout
    assert (folder / "results.txt").read_text().strip() in said
    assert [line.split()[1] for line in said.splitlines() if line[:1].isdigit()] == ["ended", "done"]


def test_a_job_that_slurm_has_forgotten_is_known_by_its_accounting(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ACCOUNTING:
        pytest.skip("no accounting here: see slurm/testcluster --help for what to install")
    job_id = slurm.run("sbatch", "--parsable", "-N2", "-o", "/dev/null", "--wrap", "exit 3").stdout.strip()
    with pytest.raises(AssertionError, match="FAILED"):
        slurm.wait(job_id, "COMPLETED")
    monkeypatch.setattr(life, "_from_squeue", lambda job_id: None)
    deadline = time.monotonic() + 120
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


def test_a_job_runs_from_the_code_as_it_was_at_its_submission(slurm: Slurm) -> None:
    script, helper, run = slurm.runs / "train.py", slurm.runs / "helper.py", slurm.runs / "runs" / "waits"
    script.write_text("import helper, os\nprint(helper.WORD, os.getcwd(), open('words.txt').read())\n")
    helper.write_text("WORD = 'submitted'\n")
    (slurm.runs / "words.txt").write_text("before")
    slurm.run("git", "init", "-q")
    words = ("cluster.num_nodes=1", "cluster.node.num_gpus=2", "launch.snapshot=true", "launch.extra=[--hold]")
    job_id = slurm.submit(run, f"script={script}", *words)
    script.write_text("raise SystemExit('edited')\n")
    helper.write_text("WORD = 'edited'\n")
    (slurm.runs / "words.txt").write_text("edited")
    slurm.run("scontrol", "release", job_id)
    slurm.wait(job_id, "COMPLETED")
    for rank in (0, 1):
        assert f"submitted {run / 'code'} before" in (run / "logs" / f"rank-{rank}.log").read_text()


def test_a_script_with_a_slow_handler_keeps_its_checkpoint_whatever_stops_it_and_comes_back(
    stopped: Future[Path],
) -> None:
    """A time limit (USR1 to its batch script), TERM to its tasks, a preemption (TERM and USR1): no step is lost."""
    own = stopped.result(timeout=500)
    came = [json.loads(line) for line in (own / "signals.jsonl").read_text().splitlines()]
    assert sorted((line["start"], line["rank"]) for line in came) == [
        (start, rank) for start in range(3) for rank in range(2)
    ]  # each rank was asked once in each start
    for start, signals in enumerate(({"SIGUSR1"}, {"SIGTERM"}, {"SIGTERM", "SIGUSR1"})):
        assert {line["signal"] for line in came if line["start"] == start} <= signals
    for rank in (0, 1):
        in_order = [step for start in range(4) for step in steps_of(own, rank, start=start)]
        assert in_order == list(range(1, len(in_order) + 1))  # none twice, none left out
        assert steps_of(own, rank, start=3)
