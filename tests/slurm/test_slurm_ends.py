"""The end of a start, where something else comes at the same moment: a cancel, a disk that is full."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from plans import plan

from launcher.agent.launch import Launch
from launcher.agent.settings import LaunchSettings
from launcher.preflight.findings import Finding, Level
from launcher.run import ledger
from launcher.run.folder import RunFolder, create_run_folder
from launcher.run.owner import claim, mark_cancelled, read_owner, this_process
from launcher.slurm import job as jobs
from launcher.slurm import nodecheck, watching
from launcher.slurm.allocation import Allocation
from launcher.slurm.command import Answer
from launcher.slurm.job import Driver
from launcher.slurm.jobstate import JobState
from launcher.slurm.requeue import JobStart, Outcome
from launcher.slurm.settings import SlurmSettings
from launcher.slurm.watching import Signals, StepWatch

ENDINGS = {  # what brings a job back
    "time limit": (Outcome(1, True), JobState("RUNNING"), Signals("USR1", stop=1)),
    "preemption": (Outcome(1, False, preempted=True), JobState("RUNNING", preempted=True), Signals("USR1")),
    "a lost node": (Outcome(1, False, lost_nodes=("n2",)), JobState("RUNNING"), Signals("USR1")),
    "a node that cannot start": (Outcome(1, False, unstarted={"n2": "why"}), JobState("RUNNING"), Signals("USR1")),
}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = create_run_folder(tmp_path / "run")
    claim(folder, this_process(job_id="17"))
    return folder


@pytest.fixture
def ended(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """End a start of job 17 in this way; return what was asked of Slurm. `meanwhile`: called with the requeue."""

    def end(ending: str, *, meanwhile: Callable[[], object] = lambda: None) -> list[str]:
        calls: list[str] = []

        def requeue(job_id: str, **_: object) -> None:
            calls.append(f"requeue {job_id}")
            meanwhile()

        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setattr(jobs, "requeue", requeue)
        monkeypatch.setattr(jobs, "ask", lambda argv: calls.append(" ".join(argv)) or Answer(0, "", ""))
        outcome, state, signals = ENDINGS[ending]
        launch = Launch(settings=LaunchSettings(), work_dir=folder.path)
        settings = SlurmSettings.from_config({"requeue": "always"})
        driver = Driver(folder, settings, Allocation("17", ("n1", "n2"), 0), launch, {}, this_process(job_id="17"))
        assert driver._end(outcome, state, [JobStart(0, None)], signals) == outcome.code
        return calls

    return end


@pytest.mark.parametrize(
    ("dead", "slow", "measured", "left"),
    [
        ((), (), 4, ("n1", "n2", "n3", "n4")),
        (("n2",), (), 3, ("n1", "n3", "n4")),
        ((), ("n3",), 4, ("n1", "n2", "n4")),
        (("n2",), ("n3",), 3, ("n1", "n4")),
    ],
)
def test_the_nodes_that_answer_are_measured_without_those_that_do_not(
    dead: tuple[str, ...], slow: tuple[str, ...], measured: int, left: tuple[str, ...],
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[Sequence[str]] = []

    def finds(check: str, bad: Sequence[str]) -> Callable[..., list[Finding]]:
        return lambda _, __, hosts: seen.append(hosts) or [Finding(Level.PROBLEM, check, "no", host) for host in bad]

    monkeypatch.setattr(nodecheck, "look_at", finds("answer", dead))
    monkeypatch.setattr(nodecheck, "measure", finds("bandwidth", slow))
    settings = SlurmSettings.from_config({"spares": 2, "check_bandwidth": True})
    launch, hosts = Launch(settings=LaunchSettings(), work_dir=folder.path), ("n1", "n2", "n3", "n4")
    driver = Driver(folder, settings, Allocation("17", hosts, 0), launch, {}, this_process(job_id="17"))
    ready, good = driver._ready(plan(nodes=2, dp=1), hosts, driver._steps(0, Signals("USR1")))
    assert (good, [len(asked) for asked in seen]) == (left, [4, measured])
    assert set(ready.hosts) <= set(left) and len(ready.hosts) == 2


@pytest.mark.parametrize("checked", [True, False], ids=["in its preflight", "before its step"])
def test_a_job_that_slurm_preempts_while_it_starts_starts_no_rank(
    checked: bool, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm sends TERM to the steps that there are; later ones would train until they are killed."""
    signals, calls = Signals("USR1", terminate=int(not checked)), []
    monkeypatch.setattr(nodecheck, "look_at", lambda *_: setattr(signals, "terminate", 1) or [])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(jobs, "job_state", lambda _: JobState("RUNNING", preempted=True))
    monkeypatch.setattr(jobs, "requeue", lambda job_id, **_: calls.append(f"requeue {job_id}"))
    monkeypatch.setattr(Driver, "_start_step", lambda *_: calls.append("step"))
    settings = SlurmSettings.from_config({"preflight": checked})
    launch, hosts = Launch(settings=LaunchSettings(), work_dir=folder.path), ("n1", "n2")
    driver = Driver(folder, settings, Allocation("17", hosts, 0), launch, {}, this_process(job_id="17"))
    assert driver.run(plan(nodes=2, dp=1), signals) == 1
    assert calls == ["requeue 17"]
    *_, end = ledger.read_events(folder.ledger)
    assert (end.details["why"], end.details["sent_back"]) == ("preempted by Slurm; requeued", True)


def test_a_step_that_starts_as_slurm_ends_the_job_is_ended(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SRUN_LISTENS_S", 1.2)
    step, notified = subprocess.Popen(["sleep", "600"], stderr=subprocess.PIPE), []
    watch = StepWatch(step, Signals("USR1"), folder, ("n1", "n2"), notified.append, None)
    watch.signals.terminate = 1
    assert watch.wait() == -signal.SIGTERM
    assert notified == ["ending the step: Slurm ends the job, which has just started"]


def cancel(folder: RunFolder) -> None:
    """As `launcher cancel` does before its scancel."""
    assert mark_cancelled(folder, this_process(job_id="17"))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_job_that_was_cancelled_does_not_requeue_itself(
    ending: str, folder: RunFolder, ended: Callable[..., list[str]]
) -> None:
    cancel(folder)
    assert ended(ending) == []
    [event] = ledger.read_events(folder.ledger)
    assert str(event.details["why"]).endswith("; not requeued: cancelled")
    owner = read_owner(folder)
    assert owner and owner.ended == "cancelled"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_cancel_just_before_a_requeue_is_not_undone_by_it(
    ending: str, folder: RunFolder, ended: Callable[..., list[str]]
) -> None:
    """Slurm requeues a cancelled job too."""
    assert ended(ending, meanwhile=lambda: cancel(folder)) == ["requeue 17", "scancel 17"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_job_that_nobody_cancelled_comes_back(ending: str, ended: Callable[..., list[str]]) -> None:
    assert ended(ending) == ["requeue 17"]


def test_an_earlier_cancel_does_not_end_a_job_that_was_brought_back(
    folder: RunFolder, ended: Callable[..., list[str]]
) -> None:
    cancel(folder)
    present = read_owner(folder)
    assert present and present.cancelled
    jobs.claim_as_job(folder, "17", job_ended=lambda _: False)  # by `scontrol requeue 17`, after the cancel
    assert ended("time limit") == ["requeue 17"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_ledger_that_cannot_be_written_ends_no_job(
    number: int,
    ended: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(path: Path, _: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(ledger, "append_line", fail)
    assert ended("time limit") == ["requeue 17"]
    said = capsys.readouterr().err
    assert f"ledger.jsonl: {ledger.END} is not recorded ({os.strerror(number)}): going on" in said


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 10_000])
def test_an_owner_that_was_damaged_meanwhile_costs_no_requeue(
    content: bytes, folder: RunFolder, ended: Callable[..., list[str]]
) -> None:
    folder.owner.write_bytes(content)
    assert ended("time limit") == ["requeue 17"]
