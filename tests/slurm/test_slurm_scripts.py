"""A script of the user's keeps the checkpoint that it takes eight seconds to write, and comes back to all its steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Slurm, events, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(400)]

SCRIPT = Path(__file__).with_name("saves_slowly.py")
NODE = {"limit": "node1", "USR1": "node2", "TERM": "node9", "preempted": "node10"}
TIMES = {"limit": ("launch.time=2", "launch.signal_lead_s=45", "launch.grace_s=40")}


def submit(slurm: Slurm, case: str) -> str:
    shape = ["launch.nproc_per_node=2", "launch.nnodes=1", f"launch.nodelist={NODE[case]}"]
    words = [f"script={SCRIPT}", *shape, f"launch.progress={case}", *TIMES.get(case, ("launch.grace_s=60",))]
    return slurm.submit(slurm.runs / f"run-{case}", *words, args=[str(slurm.runs / case)])


def test_a_script_that_saves_slowly_keeps_its_checkpoint_and_ends_with_all_its_steps(slurm: Slurm) -> None:
    jobs = {case: submit(slurm, case) for case in NODE}
    for case in NODE:
        for rank in range(2):
            wait_for_file(slurm.runs / f"{case}-runs-{rank}")
    slurm.run("scancel", "--signal=USR1", "--batch", jobs["USR1"])
    slurm.run("scontrol", "requeue", jobs["TERM"])
    high = ["sbatch", "--parsable", "-p", "high", "-w", NODE["preempted"], "-o", "/dev/null", "--wrap", "sleep 15"]
    slurm.run(*high)
    for case in ("USR1", "TERM", "preempted", "limit"):
        slurm.wait(jobs[case], "COMPLETED")
        for rank in range(2):
            done = json.loads((slurm.runs / f"{case}-{rank}.json").read_text())
            assert (done[0], done[-10:]) == ("0", ["1"] * 10), f"{case}: the first start's steps are lost"
            assert done == sorted(done)
            saved = json.loads((slurm.runs / case / f"state-{rank}.json").read_text())
            assert saved["came"][0] in ("SIGUSR1", "SIGTERM")
        assert len(events(slurm.runs / f"run-{case}", "slurm_start")) == 2


def wait_for_file(path: Path) -> None:
    wait_for(path, "", timeout_s=120)
