"""What `launcher status` makes of Slurm's words: arrays, jobs that are forgotten or unknown, refusals."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from plans import plan

from launcher.cli import main
from launcher.errors import InputError, JobFailed
from launcher.run import owner
from launcher.run.folder import create_run_folder
from launcher.run.node_state import NodeState
from launcher.run.owner import claim, this_process
from launcher.slurm import jobstate, life, submit
from launcher.slurm.command import Answer, SlurmUnreachable, unreachable
from launcher.slurm.settings import SlurmSettings
from launcher.slurm.watching import Signals, StepWatch

FORGOTTEN = Answer(1, "", "slurm_load_jobs error: Invalid job id specified\n")  # squeue of Slurm 22.05


def says(monkeypatch: pytest.MonkeyPatch, module: object, **answers: Answer) -> None:
    """Have Slurm's commands say this; squeue knows no job, and others fail."""
    known = {"squeue": FORGOTTEN, **answers}
    monkeypatch.setattr(module, "ask", lambda argv, **_: known.get(argv[0], Answer(1, "", f"{argv[0]}: error: no")))


def queue(*states: str) -> Answer:
    rows = [{"State": state, "RestartCnt": "0", "NumNodes": "2", "TimeUsed": "1:00"} for state in states]
    return Answer(0, "".join("".join(r.get(n, "").ljust(w) for n, w in life.COLUMNS.items()) + "\n" for r in rows), "")


@pytest.mark.parametrize(
    ("states", "reported"),
    [
        (["COMPLETED", "RUNNING", "PENDING"], "RUNNING"),
        (["COMPLETED", "PENDING"], "PENDING"),
        (["COMPLETED", "FAILED"], "FAILED"),
        (["COMPLETED", "COMPLETED"], "COMPLETED"),
    ],
)
def test_an_array_is_what_its_busiest_task_is(
    monkeypatch: pytest.MonkeyPatch, states: list[str], reported: str
) -> None:
    says(monkeypatch, life, squeue=queue(*states))
    assert life.status(life.SubmittedRun("17", None)).state == reported


@pytest.mark.parametrize(
    ("said", "reported"),
    [
        ("RESIZING|0:0|3|2026-01-01T00:00:00\nCOMPLETED|0:0|2|2026-01-01T00:01:00\n", ("COMPLETED", 2)),
        ("CANCELLED by 1000|0:15|4|2026-01-01T00:00:00\n", ("CANCELLED", 4)),
        ("COMPLETED|0:0|2|x\nFAILED|1:0|2|x\nCOMPLETED|0:0|2|x\n", ("FAILED", 2)),
    ],
)
def test_accounting_is_asked_for_what_the_queue_has_forgotten(
    monkeypatch: pytest.MonkeyPatch, said: str, reported: tuple[str, int]
) -> None:
    says(monkeypatch, life, sacct=Answer(0, said, ""))
    found = life.status(life.SubmittedRun("17", None))
    assert ((found.state, found.num_nodes), found.source) == (reported, "sacct")


def test_a_job_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, life)
    for command in (life.status, life.cancel):
        with pytest.raises(InputError, match="Slurm knows no job 4711"):
            command(life.SubmittedRun("4711", None))


# The words of Slurm 22.05 where slurmctld is down, where there is no slurm.conf, and where munge is missing.
SILENCES = {
    "slurm_load_jobs error: Unable to contact slurm controller (connect failure)": "slurmctld does not answer",
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)": "try again",
    "squeue: error: fetch_config: DNS SRV lookup failed\nsqueue: fatal: Could not establish a configuration source": (
        "run this on a login node"
    ),
    "slurm_load_jobs error: Protocol authentication error": "where munge runs",
    "slurm_load_jobs error: Socket timed out on send/recv operation": "slurmctld does not answer",
}


# What squeue of Slurm 22.05 prints where it is installed and no cluster is configured.
NO_CLUSTER = """\
squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
squeue: error: fetch_config: DNS SRV lookup failed
squeue: error: _establish_config_source: failed to fetch config
squeue: fatal: Could not establish a configuration source
"""


def test_what_slurm_says_at_length_is_one_short_line() -> None:
    why = unreachable(Answer(1, "", NO_CLUSTER).said)
    assert why == (
        "this machine knows no cluster (Could not establish a configuration source): run this on a login node, or set "
        "SLURM_CONF"
    )
    usage = Answer(1, "", "sbatch: error: " + "a usage " * 100 + "\nsbatch: error: Invalid numeric value").reason
    assert usage == "Invalid numeric value"
    assert len(Answer(1, "", "x" * 9999).reason) == 240


UNREACHABLE = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


@pytest.mark.parametrize(
    ("words", "conf", "said"),
    [
        (NO_CLUSTER, None, ""),
        (NO_CLUSTER, "/etc/mine.conf", "Slurm's jobs are not known: squeue: this machine knows no cluster"),
        (UNREACHABLE, None, "Slurm's jobs are not known: squeue: slurmctld does not answer"),
    ],
    ids=["installed alone", "a wrong SLURM_CONF", "no answer"],
)
def test_ls_is_silent_where_no_cluster_is_configured_and_says_where_one_does_not_answer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    conf: str | None,
    said: str,
) -> None:
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(f"#!/bin/sh\ncat >&2 <<'end'\n{words.strip()}\nend\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    if conf:
        monkeypatch.setenv("SLURM_CONF", conf)
    assert main(["ls"]) == 0
    err = capsys.readouterr().err
    assert said in err if said else err == ""


@pytest.mark.parametrize("words", SILENCES)
def test_no_answer_differs_from_an_empty_answer(words: str) -> None:
    assert SILENCES[words] in str(unreachable(Answer(1, "", words).said))
    assert unreachable(FORGOTTEN.reason) is None
    assert unreachable("Requested node configuration is not available") is None


def no_answer(argv: object, **_: object) -> Answer:
    raise SlurmUnreachable("squeue: slurmctld does not answer")


def test_a_job_that_cannot_be_asked_for_is_not_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(life, "ask", no_answer)
    run = life.SubmittedRun("17", create_run_folder(tmp_path).path)
    reported = life.status(run)
    assert (reported.state, reported.ended) == (life.UNREACHABLE, False)
    assert "slurmctld does not answer" in str(reported)
    with pytest.raises(InputError, match="cannot be cancelled now"):
        life.cancel(run)
    with pytest.raises(SlurmUnreachable):
        life.status(life.SubmittedRun("17", None))


def test_a_job_whose_state_cannot_be_asked_for_counts_as_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobstate, "ask", no_answer)
    assert (jobstate.job_state("17").ending, jobstate.job_state("17").preempted) == (False, False)


def test_a_requeue_waits_for_slurmctld(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [no_answer, no_answer, lambda argv: Answer(0, "", "")]
    monkeypatch.setattr(jobstate, "ask", lambda argv: answers.pop(0)(argv))
    monkeypatch.setattr(jobstate, "RETRY_EVERY_S", 0.01)
    reported: list[str] = []
    jobstate.requeue("17", notify=reported.append)
    assert (len(reported), answers) == (2, [])
    monkeypatch.setattr(jobstate, "RETRY_FOR_S", -1.0)
    monkeypatch.setattr(jobstate, "ask", no_answer)
    with pytest.raises(JobFailed, match="cannot be requeued"):
        jobstate.requeue("17", notify=reported.append)


@pytest.mark.parametrize(
    ("state", "reason", "said"),  # as Slurm 22.05's squeue says them
    [
        ("PENDING", "launch failed requeued held", "a Prolog that fails"),
        ("PENDING", "job requeued in held state", "held: `scontrol release 17` lets it start"),
        ("SPECIAL_EXIT", "job requeued in held state", "held: `scontrol release 17` lets it start"),
        ("PENDING", "JobHeldUser", "held: `scontrol release 17` lets it start"),
        ("PENDING", "JobHeldAdmin", "held by an administrator"),
        ("PENDING", "Resources", None),
        ("RUNNING", "None", None),
    ],
)
def test_a_held_job_says_what_releases_it(state: str, reason: str, said: str | None) -> None:
    shown = str(life.JobStatus(job_id="17", state=state, reason=reason))
    assert ("scontrol release" in shown) == (said is not None)
    assert said is None or said in shown


def test_a_job_that_ended_just_before_its_cancel_is_said_to_have_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    states = ["RUNNING", "COMPLETED"]
    refused = Answer(1, "", "scancel: error: Kill job error on job id 17: Job/step already completing or completed")

    def ask(argv: tuple[str, ...]) -> Answer:
        return queue(states.pop(0)) if argv[0] == "squeue" else refused

    monkeypatch.setattr(life, "ask", ask)
    run = life.SubmittedRun("17", create_run_folder(tmp_path).path)
    assert life.cancel(run) == "job 17 has ended already: COMPLETED"


def test_a_folder_that_cannot_be_written_keeps_no_job_alive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(argv: tuple[str, ...]) -> Answer:
        asked.append(argv[0])
        return queue("RUNNING") if argv[0] == "squeue" else Answer(0, "", "")

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    folder = create_run_folder(tmp_path)
    claim(folder, this_process(job_id="17"))
    monkeypatch.setattr(life, "ask", ask)
    monkeypatch.setattr(owner, "write_json", fail)
    assert "Read-only file system" in life.cancel(life.SubmittedRun("17", folder.path))
    assert asked == ["squeue", "scancel"]


def test_the_members_of_an_array_that_have_ended_are_known_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("0", "CANCELLED"), ("1", "RUNNING"), ("2", "PENDING")]
    queue = "".join(f"{task:16}{state:24}\n" for task, state in rows)
    says(monkeypatch, life, squeue=Answer(0, queue, ""), sacct=Answer(0, "17_3|COMPLETED\n17_0|RUNNING\n", ""))
    assert life.ended_members("17") == {0: "CANCELLED", 3: "COMPLETED"}


def test_a_refusal_is_one_line_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "sbatch: error: invalid partition specified: nope\nsbatch: error: Invalid partition name specified\n"
    says(monkeypatch, submit, sbatch=Answer(1, "", refused), sinfo=Answer(0, "gpu\nlong\n", ""))
    request = submit.SubmitRequest(("sbatch",), (), submit.batch_script())
    with pytest.raises(InputError) as caught:
        submit.submit(request)
    assert str(caught.value) == (
        "Slurm refused the job (invalid partition specified: nope; Invalid partition name specified): "
        "set launch.partition to one of gpu, long"
    )


@pytest.mark.parametrize(("partition", "refused"), [(None, False), ("small", True), ("elsewhere", False)])
def test_more_nodes_than_exist_are_refused(
    monkeypatch: pytest.MonkeyPatch, partition: str | None, refused: bool
) -> None:
    says(monkeypatch, submit, sinfo=Answer(0, "small|2\nlarge|4\n", ""))
    settings = SlurmSettings.from_config({"partition": partition})
    if not refused:
        submit.check_size(plan(), settings)
        return
    with pytest.raises(InputError, match=r"needs 4 nodes \(small has 2\)"):
        submit.check_size(plan(), settings)


@pytest.mark.parametrize("asked", [1, 2])
def test_a_signal_waits_for_agents_that_still_start_unless_it_comes_again(asked: int, tmp_path: Path) -> None:
    """It would kill an agent by its default action."""
    folder, said = create_run_folder(tmp_path), list[str]()
    step = subprocess.Popen(["sleep", "60"])
    watch = StepWatch(
        step, Signals("USR1", stop=asked), folder, ("a", "b"), said.append, None, _listens_at=time.monotonic()
    )
    try:
        for node in range(2):
            watch._pass_signals_on()
            assert bool(said) == (asked == 2)
            NodeState(node, "ab"[node], 1, 0.0, "running", 1, 0, 3, "", "").write(folder)
        watch._pass_signals_on()
        assert said == ["SIGUSR1: asking the ranks to write a checkpoint and stop"]
        assert step.wait(10) == -signal.SIGUSR1
    finally:
        step.kill()
        step.wait()
