"""`salloc … launcher run`: it uses the nodes of the allocation, ends as a run here does, and leaves nothing there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_lab import SIDE, SMALL, STEPPER, Slurm, losses, steps, wait_for

from launcher.run.folder import RunFolder

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]

GPT = (*SMALL, "layout.tp=2", "layout.pp=2", "layout.dp=1", "layout.micro_batch=2", "layout.virtual_stages=1")
RUN = (sys.executable, "-P", "-m", "launcher.cli", "run")
STEPPER_SHAPE = ("cluster=testcluster", "cluster.node.num_gpus=1", "cluster.node.domain_size=1")


def hosts(run: Path) -> list[str]:
    found: list[str] = json.loads(RunFolder(run).present_plan.read_text())["hosts"]
    return found


@pytest.fixture
def start(slurm: Slurm) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a stepper in an allocation, whose launcher can be signalled."""
    jobs: list[subprocess.Popen[str]] = []

    def started(run: Path, *words: str, nodes: str = "node1,node2") -> subprocess.Popen[str]:
        argv = ["salloc", "-w", nodes, *RUN, *STEPPER_SHAPE, f"script={STEPPER}", f"run_dir={run}", *words]
        pipe = subprocess.PIPE
        jobs.append(subprocess.Popen(argv, env=slurm.environment, cwd=slurm.runs, text=True, stdout=pipe, stderr=pipe))
        return jobs[-1]

    yield started
    for job in jobs:
        if job.poll() is None:
            job.terminate()  # salloc gives the allocation back, which ends what is in it
            job.communicate(timeout=200)


def test_a_gpt_in_an_allocation_uses_its_nodes_and_learns_as_it_does_here(
    slurm: Slurm, losses_here: list[float]
) -> None:
    run = slurm.runs / "salloc"
    done = slurm.run("salloc", "-N2", "-x", f"{SIDE},new1,new2", *RUN, "cluster=testcluster", *GPT, f"run_dir={run}")
    assert len(set(hosts(run))) == 2
    assert [json.loads((run / "nodes" / f"node-{n}.json").read_text())["host"] for n in range(2)] == hosts(run)
    assert json.loads(done.stdout.splitlines()[-1])["losses"]["last"] == pytest.approx(losses(run)[-1], abs=1e-4)
    assert "placement (exact)" in done.stderr
    assert losses(run) == pytest.approx(losses_here, rel=1e-5)
    assert slurm.launcher("status", str(run)).stdout.count("done") == 2


def test_a_dry_run_in_an_allocation_shows_the_step_and_a_plan_for_more_nodes_is_refused(slurm: Slurm) -> None:
    run = slurm.runs / "none"
    words = [*STEPPER_SHAPE, f"script={STEPPER}", f"run_dir={run}"]
    done = slurm.run("salloc", "-w", "node1,node2", *RUN, *words, "dry_run=true")
    assert "srun --nodes=2 --ntasks=2" in done.stderr
    refused = slurm.run("salloc", "-w", "node1", *RUN, *words, "launch.nnodes=2", check=False)
    assert refused.returncode == 2
    assert (
        "but this allocation" in refused.stderr
        and "has 1: ask salloc for -N2, or set launch.nnodes=1" in refused.stderr
    )
    here = slurm.run("salloc", "-w", "node1,node2", *RUN, "launch=local", f"script={STEPPER}", "dry_run=true")
    assert "srun" not in here.stderr
    assert not run.exists()


@pytest.mark.parametrize("how", ["cancel", "killed"])
def test_a_run_in_an_allocation_is_stopped_from_outside_and_leaves_no_process(
    slurm: Slurm, start: Callable[..., subprocess.Popen[str]], how: str
) -> None:
    run = slurm.runs / how
    salloc = start(run, "--", "5000")
    wait_for(run / "steps.jsonl", '"step": 3')
    pids = [json.loads(f.read_text())["pid"] for f in (run / "nodes").iterdir()]
    assert len(pids) == 2
    if how == "cancel":
        slurm.launcher("cancel", str(run))
    else:
        os.kill(json.loads((run / "owner.json").read_text())["pid"], signal.SIGKILL)
    _, said = salloc.communicate(timeout=200)
    if how == "cancel":  # salloc itself ends with 0 where its command was killed
        assert salloc.returncode == 1, said
        assert slurm.launcher("status", str(run), check=False).stdout.count("cancelled") == 2
    deadline = time.monotonic() + 120
    while left := [line for line in commands() if str(run) in line or "steps.jsonl" in line]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    assert steps(run)[-1]["world"] == 2


def commands() -> list[str]:
    """What runs on this machine, nodes of the test cluster included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return found


def test_a_dead_node_of_an_allocation_ends_the_run(slurm: Slurm, start: Callable[..., subprocess.Popen[str]]) -> None:
    run = slurm.runs / "dead"
    salloc = start(run, "launch.nnodes=2", "--", "40", "checkpoint-every=5", nodes="node1,node2,node9")
    wait_for(run / "steps.jsonl", '"step": 6')
    victim = hosts(run)[1]
    slurm.testcluster("kill-node", victim)
    _, said = salloc.communicate(timeout=200)
    assert f"{victim} no longer answered" in said
    assert salloc.returncode == 1, said
