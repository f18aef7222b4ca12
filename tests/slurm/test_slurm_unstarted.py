"""What follows when a step cannot start on a node. The words of srun are recorded from Slurm 22.05's test cluster."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.preflight.findings import hosts_to_exclude
from launcher.run.folder import create_run_folder
from launcher.slurm import jobstate
from launcher.slurm.command import Answer
from launcher.slurm.heard import ANSWER, Heard, HeardLine, judge
from launcher.slurm.requeue import JobStart, Outcome, decide
from launcher.slurm.unstarted import unstarted
from launcher.slurm.watching import Signals, StepWatch

HOSTS = ("fa1", "fa2", "fa3")
AFTER = """\
srun: error: Application launch failed: {0}
srun: Job step aborted: Waiting up to 5 seconds for job step to finish.
slurmstepd-fa1: error: *** STEP 1.0 ON fa1 CANCELLED AT 2026-11-29T19:05:35 ***
srun: error: fa1: task 0: Killed
srun: error: fa3: task 2: Killed
"""
LAUNCH = "srun: error: Task launch for StepId=1.0 failed on node {0}: {1}\n"
EXPIRED = "Job credential expired"
# Cause on fa2 → the words of srun.
RECORDED = {
    "slurmd stopped until its credential had expired": LAUNCH.format("fa2", EXPIRED) + AFTER.format(EXPIRED),
    "slurmd or the node killed": (
        LAUNCH.format("fa2", "Communication connection failure") + AFTER.format("Communication connection failure")
    ),
    "munge does not answer": (
        "srun: error: slurm_receive_msgs: [[fa2]:22819] failed: Zero Bytes were transmitted or received\n"
        + LAUNCH.format("fa2", "Zero Bytes were transmitted or received")
        + AFTER.format("Zero Bytes were transmitted or received")
    ),
    "the prolog failed": (
        LAUNCH.format("fa2", "Job prolog failed")
        + "srun: error: Application launch failed: Job prolog failed\n"
        + "srun: Job step aborted: Waiting up to 5 seconds for job step to finish.\n"
        + "srun: error: fa3: task 2: Terminated\n"
    ),
    "the task prolog failed": (
        "srun: error: fa2: task 1: Exited with exit code 1\nslurmstepd-fa2: error: TaskProlog failed status=1\n"
    ),
    "the program is missing there": (
        "slurmstepd-fa2: error: execve(): /opt/venv/bin/python: No such file or directory\n"
        "srun: error: fa2: task 1: Exited with exit code 2\n"
    ),
}
EVERYWHERE = {
    EXPIRED: "".join(LAUNCH.format(host, EXPIRED) for host in ("fa3", "fa1", "fa2"))
    + f"srun: error: Application launch failed: {EXPIRED}\nsrun: Job step aborted\n",
    "execve(): /tmp/nonexistent: No such file or directory": "".join(
        f"slurmstepd-{host}: error: execve(): /tmp/nonexistent: No such file or directory\n"
        f"srun: error: {host}: task {task}: Exited with exit code 2\n"
        for task, host in enumerate(HOSTS)
    ),
}
STARTED = (
    "srun: error: fa2: task 1: Exited with exit code 1\n",
    "launcher: node fa2 failed: rank 3 ended with exit code 1\n",
    "srun: error: Unable to create step for job 8: More processors requested than permitted\n",
    "srun: error: Node failure on fa2\n",  # slurmctld has marked it down, which is asked for elsewhere
    "a program says: Task launch for StepId=1.0 failed on node fa2: no\n",
)


@pytest.mark.parametrize("cause", RECORDED)
def test_a_node_that_could_not_start_its_task_is_named_and_the_job_comes_back_without_it(cause: str) -> None:
    failed = unstarted(RECORDED[cause].splitlines())
    assert [*failed] == ["fa2"]
    decision = decide(Outcome(1, False, unstarted=failed), [JobStart(0, None)], requeue=True, max_requeues=50)
    assert (decision.requeue, decision.without) == (True, ("fa2",))
    assert decision.why == f"fa2 could not start the step ({failed['fa2']}); requeued"


@pytest.mark.parametrize("reason", EVERYWHERE)
def test_what_no_node_could_start_is_no_node_s_fault(reason: str) -> None:
    failed = unstarted(EVERYWHERE[reason].splitlines())
    assert failed == dict.fromkeys(HOSTS, reason)
    outcome = Outcome(1, False, unstarted=failed, everywhere=True)
    decision = decide(outcome, [JobStart(0, None)], requeue=True, max_requeues=50)
    assert (decision.requeue, decision.without) == (False, ())
    assert "no node is at fault" in decision.why
    preempted = decide(replace(outcome, preempted=True), [JobStart(0, None)], requeue=True, max_requeues=50)
    assert preempted.requeue


@pytest.mark.parametrize("said", STARTED)
def test_what_started_and_failed_is_not_taken_for_it(said: str) -> None:
    assert unstarted(said.splitlines()) == {}


@pytest.mark.parametrize(("allowed", "restart"), [(False, 0), (True, 50)])
def test_the_bounds_of_requeues_hold_here_too(allowed: bool, restart: int) -> None:
    outcome = Outcome(1, False, unstarted={"fa2": EXPIRED})
    assert not decide(outcome, [JobStart(restart, None)], requeue=allowed, max_requeues=50).requeue


def test_a_check_that_one_node_could_not_start_blames_that_node_alone() -> None:
    """srun has ended the checks of the other nodes before they could say anything."""
    err = tuple(HeardLine(line, 0.0) for line in RECORDED["munge does not answer"].splitlines())
    found = judge(Heard((), err, 141), HOSTS)
    assert hosts_to_exclude(found) == ("fa2",)
    assert [(f.check, f.message) for f in found] == [(ANSWER, "none to srun (Zero Bytes were transmitted or received)")]
    everywhere = tuple(HeardLine(line, 0.0) for line in EVERYWHERE[EXPIRED].splitlines())
    assert hosts_to_exclude(judge(Heard((), everywhere, 167), HOSTS)) == ()


def test_the_words_of_a_step_are_passed_on_and_one_that_lacks_a_node_is_ended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """srun would wait two minutes for what the other nodes' agents do."""
    said = RECORDED["the task prolog failed"]
    script = f"import sys, time; print({said!r}, end='', file=sys.stderr, flush=True); time.sleep(60)"
    step = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    reported: list[str] = []
    watch = StepWatch(step, Signals("USR1"), create_run_folder(tmp_path), HOSTS, reported.append, None)
    assert watch.wait() != 0
    assert watch.errors.unstarted() == {"fa2": "TaskProlog failed status=1"}
    assert reported == ["ending the step: fa2 could not start the step (TaskProlog failed status=1)"]
    assert capfd.readouterr().err == said


RECORD = "JobId=17 JobName=x Partition=debug NumNodes=2-2 NumCPUs=2 ReqNodeList={0} ExcNodeList={1} Features=(null)"
NODES = "".join(f"fa{i}\n" for i in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("record", "asked", "said"),
    [
        (RECORD.format("(null)", "(null)"), "excnodelist=fa2", "the job waits for nodes other than fa2"),
        (RECORD.format("(null)", "fa[2,4]"), "excnodelist=fa[2,4]", "the job waits for nodes other than fa2"),
        (RECORD.format("(null)", "fa[3-4]"), None, "its partition has not enough others"),
        (RECORD.format("fa[1-2]", "(null)"), None, "it asks for fa2 by name"),
    ],
)
def test_a_node_is_excluded_where_the_job_can_do_without_it(
    record: str, asked: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []

    def ask(argv: tuple[str, ...]) -> Answer:
        calls.append(argv)
        hosts = NODES if "%N" in argv else "vm\n" * 4  # %n: names of machines, which need not be those of nodes
        return Answer(0, {"show": record, "-h": hosts}.get(argv[1], ""), "")

    monkeypatch.setattr(jobstate, "ask", ask)
    notified: list[str] = []
    jobstate.requeue("17", without=("fa2",), notify=notified.append)
    verbs = [argv[1] for argv in calls]
    assert verbs[verbs.index("requeue") + 1 :] == ["update"] * bool(asked)  # Slurm soon kills what has asked for it
    assert [argv[-1] for argv in calls if argv[1] == "update"] == ([asked] if asked else [])
    assert said in notified[0]


def test_a_job_without_bad_nodes_is_requeued_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobstate, "ask", lambda argv: calls.append(argv) or Answer(0, "", ""))
    jobstate.requeue("17", notify=calls.append)
    assert calls == [("scontrol", "requeue", "17")]


@pytest.mark.parametrize("record", ["", "ExcNodeList=n[1-", "JobId=17 ExcNodeList=" + "n[1-9]" * 9, "\x00" * 99])
def test_a_record_that_cannot_be_read_costs_the_exclusion_and_not_the_requeue(
    record: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def ask(argv: tuple[str, ...]) -> Answer:
        calls.append(argv[1])
        return Answer(0, record if argv[1] == "show" else NODES, "")

    monkeypatch.setattr(jobstate, "ask", ask)
    notified: list[str] = []
    jobstate.requeue("17", without=("fa2",), notify=notified.append)
    assert "requeue" in calls
    assert len(notified) == 1
