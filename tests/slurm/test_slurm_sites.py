"""Slurm as sites have it: other jobs' variables in the shell, preemption at the start, folders that are not shared."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from slurm_lab import NEWER, SIDE, STEPPER, Slurm, events, steps, wait_until

from launcher.cluster.hostlist import expand_hostlist
from launcher.run.folder import RunFolder
from launcher.slurm.life import UNREACHABLE

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

# What is left in shells: of another allocation, of srun, by hand.
LEFT_OVER = {
    "SLURM_GPUS": "3", "SLURM_GPUS_PER_TASK": "9", "SLURM_GPUS_PER_NODE": "5", "SLURM_NTASKS_PER_NODE": "7",
    "SLURM_CPUS_PER_TASK": "99", "SLURM_TRES_PER_TASK": "gres/gpu:9", "SLURM_CPU_BIND": "map_cpu:0",
    "SLURM_HINT": "nomultithread", "SLURM_DISTRIBUTION": "arbitrary", "SLURM_MEM_PER_CPU": "999999",
    "SLURM_TIMELIMIT": "0:01", "SLURM_EXPORT_ENV": "NONE", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "77",
}  # fmt: skip


def one_node(run: Path, *words: str) -> list[str]:
    """The overrides of a stepper on one node of one rank."""
    shape = ["cluster.num_nodes=1", "cluster.node.num_gpus=1", "cluster.node.domain_size=1"]
    return [
        "cluster=testcluster",
        *shape,
        f"script={STEPPER}",
        f"run_dir={run}",
        f"launch.exclude={SIDE},{NEWER}",
        *words,
    ]


def init_of(slurm: Slurm, node: str) -> int:
    """Return the first process of a node; its mounts are the node's."""
    parent = int((slurm.folder / "run" / f"node-{node}.pid").read_text())
    return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])


def hide(slurm: Slurm, node: str, folder: Path) -> None:
    """Mount an empty folder over this one, on one node."""
    enter = ["nsenter", "-t", str(init_of(slurm, node)), "-m"]
    subprocess.run([*enter, "mount", "-t", "tmpfs", "none", str(folder)], check=True)


def show(slurm: Slurm, node: str, folder: Path) -> None:
    enter = ["nsenter", "-t", str(init_of(slurm, node)), "-m"]
    subprocess.run([*enter, "umount", str(folder)], check=True)


def test_a_job_submitted_inside_another_allocation_is_the_job_that_was_asked_for(slurm: Slurm) -> None:
    run = slurm.runs / "inside"
    argv = [sys.executable, "-m", "launcher.cli", "submit", *one_node(run), "--", "3"]
    done = slurm.run("salloc", "-w", "node10", *argv, **LEFT_OVER, SBATCH_ARRAY_INX="0-3", HF_TOKEN="hf_0")
    job_id = done.stdout.strip()
    slurm.wait(job_id, "COMPLETED")
    assert len(steps(run)) == 3
    assert "HF_TOKEN stay behind" in done.stderr
    assert "SBATCH_ARRAY_INX" in done.stderr
    assert f"ArrayJobId={job_id}" not in slurm.run("scontrol", "show", "job", job_id).stdout


def test_a_dry_run_s_command_survives_such_a_shell_too(slurm: Slurm) -> None:
    run = slurm.runs / "by hand"
    slurm.launcher("submit", *one_node(run, "dry_run=true"), "--", "3")
    script = [str(Path(__file__).parents[2] / "slurm" / "train.sbatch"), str(run), sys.executable]
    options = ["--parsable", "-N1", f"--exclude={SIDE},{NEWER}", "-o", str(run / "logs" / "slurm-%j.out")]
    job_id = slurm.run("sbatch", *options, *script, **LEFT_OVER).stdout.strip()
    slurm.wait(job_id, "COMPLETED")
    assert len(steps(run)) == 3

    array = slurm.run("sbatch", *options, *script, SBATCH_ARRAY_INX="0-1").stdout.strip()
    for task in ("0", "1"):
        slurm.wait(f"{array}_{task}", "FAILED")
    assert f"{array}_0, a task of a job array" in slurm.logs()


def test_a_job_that_is_preempted_while_it_starts_comes_back(slurm: Slurm) -> None:
    run, slow = slurm.runs / "early", slurm.runs / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if 'launcher.slurm.check' in sys.orig_argv and not os.environ.get('SLURM_RESTART_COUNT'):\n"
        f"    open({str(slow / 'started')!r}, 'w').close()\n"
        "    time.sleep(50)\n"
    )
    path = ":".join(filter(None, [str(slow), os.environ.get("PYTHONPATH")]))
    job_id = slurm.launcher("submit", *one_node(run), "--", "3", PYTHONPATH=path).stdout.strip()
    wait_until((slow / "started").exists)  # with a grace time Slurm signals steps, and the batch script not
    on = json.loads(RunFolder(run).present_plan.read_text())["hosts"][0]
    high = ["-p", "high", "-w", on, "--exclusive", "-o", "/dev/null"]
    slurm.run("sbatch", *high, "--wrap", "sleep 2")
    slurm.wait(job_id, "COMPLETED")
    first, _ = events(run, "slurm_end")
    assert (first["why"], first["sent_back"]) == ("preempted by Slurm; requeued", True)
    assert len(events(run, "slurm_start")) == 2
    assert len(steps(run)) == 3


def test_what_the_job_asks_for_wrongly_is_blamed_on_no_node(slurm: Slurm) -> None:
    run = slurm.runs / "wrong"
    words = ["launch.environment={SLURM_GPUS_PER_TASK: '9'}"]
    job_id = slurm.submit_steps(run, *words, nodes=2, args=["3"])
    slurm.wait(job_id, "FAILED")
    log = slurm.logs()
    assert "this is not a fault of the nodes" in log
    assert "--exclude" not in log


def test_a_folder_that_nodes_do_not_see_is_said_to_be_just_that(slurm: Slurm) -> None:
    run, hidden = slurm.runs / "seen", slurm.runs / "hidden"
    for folder in (run, hidden):
        folder.mkdir()
    hide(slurm, "node9", run)
    job_id = slurm.submit_steps(run, "train.global_batch=12", "launch.nodelist=node1,node2,node9", nodes=3, args=["3"])
    slurm.wait(job_id, "FAILED")
    show(slurm, "node9", run)
    assert "not seen here, and seen on 2 other nodes" in slurm.logs()
    assert "submit it again with --exclude=node9" in slurm.logs()

    hide(slurm, "node2", hidden)
    job_id = slurm.submit_steps(hidden, "launch.nodelist=node1,node2", nodes=2, args=["3"])
    slurm.wait(job_id, "FAILED")
    show(slurm, "node2", hidden)
    log = (hidden / "logs" / f"slurm-{job_id}.out").read_text()
    assert "not shared: only node1 sees it" in log
    assert "--exclude" not in log


def test_a_node_that_cannot_start_the_agent_is_excluded_and_the_job_goes_on_without_it(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three nodes Slurm gives the two of one leaf first; on one of them Python is missing, as with a lost mount."""
    run, own = slurm.runs / "unstarted", slurm.runs / "venv"
    venv.create(own, symlinks=True)
    [packages] = own.glob("lib/*/site-packages")
    (packages / "ours.pth").write_text("\n".join(filter(None, sys.path)))
    monkeypatch.setattr(sys, "executable", str(own / "bin" / "python"))
    hide(slurm, "node9", own)
    words = ["launch.preflight=false", f"launch.exclude={SIDE},{NEWER},node10"]
    job_id = slurm.submit_steps(run, *words, nodes=2, args=["3"])
    slurm.wait(job_id, "COMPLETED")
    show(slurm, "node9", own)
    first, second = events(run, "slurm_placed")
    assert sorted(first["hosts"]) == ["node1", "node9"]
    assert sorted(second["hosts"]) == ["node1", "node2"]
    why = str(events(run, "slurm_end")[0]["why"])
    assert why.startswith("node9 could not start the step (execve(): ")
    assert why.endswith("; requeued")
    [excluded] = re.findall(r"ExcNodeList=(\S+)", slurm.run("scontrol", "show", "job", job_id).stdout)
    assert {"node9", "node10", *SIDE.split(",")} <= {*expand_hostlist(excluded)}


def test_a_job_that_a_failed_prolog_holds_says_what_releases_it(slurm: Slurm) -> None:
    run, broken = slurm.runs / "held", slurm.folder / "no-prolog-node1"
    broken.touch()
    try:
        job_id = slurm.launcher("submit", *one_node(run, "launch.nodelist=node1"), "--", "3").stdout.strip()
        reasons = ("squeue", "-h", "-j", job_id, "-o", "%r")
        wait_until(lambda: "held" in slurm.run(*reasons).stdout)
        said = slurm.launcher("status", str(run)).stdout
    finally:
        broken.unlink()
    assert f"job {job_id}: PENDING (launch failed requeued held)" in said
    assert "`sinfo -R` names the node" in said
    assert slurm.nodes("node1") == ["drained"]
    [release] = re.findall(r"`(scontrol release \d+)` lets it start", said)
    slurm.run("scontrol", "update", "nodename=node1", "state=resume")
    slurm.run(*release.split())
    slurm.wait(job_id, "COMPLETED")
    assert len(steps(run)) == 3
    assert "held" not in slurm.launcher("status", str(run)).stdout


def test_a_controller_that_does_not_answer_has_not_forgotten_the_job(slurm: Slurm) -> None:
    run = slurm.runs / "silent"
    job_id = slurm.launcher("submit", *one_node(run, "launch.extra=[--hold]"), "--", "3").stdout.strip()
    conf = (slurm.folder / "etc" / "slurm.conf").read_text()
    dead = slurm.runs / "slurm.conf"
    changed = {"SlurmctldPort": "SlurmctldPort=1", "MessageTimeout": "MessageTimeout=1"}  # for so long clients try
    dead.write_text("\n".join(changed.get(line.partition("=")[0], line) for line in conf.splitlines()))
    reported = json.loads(slurm.launcher("status", str(run), "output=json", SLURM_CONF=str(dead)).stdout)
    assert (reported["job_id"], reported["state"]) == (job_id, UNREACHABLE)
    assert "slurmctld does not answer" in reported["reason"]
    refused = slurm.launcher("cancel", str(run), check=False, SLURM_CONF=str(dead))
    assert (refused.returncode, "cannot be cancelled now" in refused.stderr) == (2, True)
    again = slurm.launcher("submit", *one_node(slurm.runs / "x"), check=False, SLURM_CONF=str(dead))
    assert (again.returncode, "slurmctld does not answer" in again.stderr) == (2, True)
    launcher = ["env", "-u", "SLURM_CONF", sys.executable, "-m", "launcher.cli"]
    no_cluster = slurm.run(*launcher, "submit", *one_node(slurm.runs / "y"), check=False)
    assert (no_cluster.returncode, "run this on a login node" in no_cluster.stderr) == (2, True)
    assert slurm.state(job_id) == "PENDING"
    assert json.loads(slurm.launcher("status", str(run), "output=json").stdout)["state"].startswith("PENDING")
