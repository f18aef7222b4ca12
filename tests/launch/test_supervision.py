"""What the agent notices while ranks run: stop requests, hangs, slow ranks; and how it brings ranks back."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import HERE, Job, started_jobs

from launcher.agent import stack_dump as stacks
from launcher.files import read_lines
from launcher.run import status as runs
from launcher.run.folder import RunFolder
from launcher.run.ledger import PHASE_WORDS
from launcher.run.progress import Progress

pytestmark = pytest.mark.slow
STEPS, HANGS = HERE / "step_script.py", HERE / "hang_script.py"


def saved(folder: Path) -> int:
    return int((folder / "step").read_text()) if (folder / "step").exists() else 0


def wait_for_steps(job: Job, folder: Path, more: int = 3) -> None:
    goal = saved(folder) + more
    job.wait_for(lambda: saved(folder) >= goal)


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:
    """Jobs that hang at different places, all at a time: most of what they take is waiting."""
    folder = tmp_path_factory.mktemp("hanging")
    silent = {"script": HANGS, "start_timeout_s": None}
    with started_jobs(folder) as start:
        yield {
            # Far above what a step takes on a loaded machine: another hang would be found before this one.
            "in a step": start(f"dir={folder}", "stuck=2:3", script=STEPS, hang_timeout_s=12),
            "before the process group": start("stuck=2", silence_timeout_s=12, **silent),
            "in a plain script": start("stuck=1", ranks=2, silence_timeout_s=10, **silent),
        }


def test_a_signal_stops_all_ranks_after_the_same_step(start: Callable[..., Job], tmp_path: Path) -> None:
    job = start(f"dir={tmp_path}", script=STEPS, stop_signals=["USR2", "INT"], grace_s=60)
    wait_for_steps(job, tmp_path)
    status = runs.status(RunFolder(job.folder)).nodes
    assert status[0].verdict == "running"
    assert all(state.step > 0 and state.checks_stop for state in status[0].ranks.values())
    job.process.send_signal(signal.SIGUSR2)
    code, _, err = job.finish()
    assert code == 1
    assert "a second signal stops at once" in err
    stopped = [re.findall(r"rank \d was asked to stop after step (\d+)", job.log(rank)) for rank in range(4)]
    assert [len(steps) for steps in stopped] == [1, 1, 1, 1]
    assert len({steps[0] for steps in stopped}) == 1
    assert f"stopped by SIGUSR2 after step {stopped[0][0]}" in err
    assert runs.status(RunFolder(job.folder)).nodes[0].verdict == "stopped"


def test_a_second_signal_does_not_wait(start: Callable[..., Job], tmp_path: Path) -> None:
    job = start(f"dir={tmp_path}", "step_s=1000", script=STEPS, ranks=2, grace_s=600)
    job.wait_for(lambda: all("begins" in job.log(rank) for rank in range(2)))
    job.process.send_signal(signal.SIGINT)
    job.wait_for(lambda: runs.status(RunFolder(job.folder)).nodes[0].state == "stopping")
    job.process.send_signal(signal.SIGINT)
    code, _, err = job.finish()
    assert code == 1
    assert "stopped by SIGINT" in err


def test_a_hang_is_found_and_the_rank_that_hangs_is_named(hanging: dict[str, Job]) -> None:
    job = hanging["in a step"]
    code, _, err = job.finish()
    assert code == 1
    assert "the job hangs: no heartbeat from rank" in err
    assert "odd one out: rank 2 is at a different place than the others" in err
    assert re.search(r"rank 2 \(step 2\): .*step_script.py:<module>", err)
    assert re.search(r"rank 0 \(step 2\), 1 \(step 2\), 3 \(step 2\): .*all_reduce", err)
    assert "most recent call first" in job.log(2)
    if stacks.py_spy(os.getpid()):
        assert "py-spy on a hang" in job.log(2)
        assert "step_script.py" in job.log(2).partition("py-spy on a hang")[2]


def test_a_stopped_process_is_named_and_the_job_comes_back(start: Callable[..., Job], tmp_path: Path) -> None:
    end = tmp_path / "end"
    job = start(f"dir={tmp_path}", f"until={end}", script=STEPS, hang_timeout_s=12, max_restarts=1)  # as above
    wait_for_steps(job, tmp_path)
    before = saved(tmp_path)
    os.kill(job.rank_pid(1), signal.SIGSTOP)
    job.wait_for(lambda: len(re.findall("begins after", job.log(0))) == 2)
    wait_for_steps(job, tmp_path)
    end.touch()
    code, _, err = job.finish()
    assert code == 0, err
    assert "odd one out: rank 1 is stopped" in err
    begins = [int(step) for step in re.findall(r"begins after step (\d+)", job.log(0))]
    assert begins[0] == 0
    assert begins[1] >= before


def test_progress_refills_the_restart_budget(start: Callable[..., Job], tmp_path: Path) -> None:
    job = start(f"dir={tmp_path}", script=STEPS, ranks=2, max_restarts=1, refill_steps=5)
    for again in range(3):
        wait_for_steps(job, tmp_path, more=8)
        os.kill(job.rank_pid(0), signal.SIGKILL)
        job.wait_for(lambda again=again: len(re.findall("begins after", job.log(0))) == again + 2)
    os.kill(job.rank_pid(0), signal.SIGKILL)  # without progress since the last start
    code, _, err = job.finish()
    assert code == 1
    assert err.count("starting the ranks again") == 3
    assert err.count("failed first") == 4


def test_a_slow_rank_is_named_with_its_node_though_all_wait_for_it(start: Callable[..., Job], tmp_path: Path) -> None:
    end = tmp_path / "end"
    args = (f"dir={tmp_path}", "busy=1", f"until={end}", "step_s=0.02")
    job = start(*args, script=STEPS, straggler_steps=5, straggler_factor=2.5)
    ledger = RunFolder(job.folder).ledger
    job.wait_for(lambda: ledger.exists() and '"straggler"' in ledger.read_text())
    wait_for_steps(job, tmp_path, more=5)
    end.touch()
    code, _, err = job.finish()
    assert code == 0, err
    assert re.search(r"rank 1 \(node 0, .*\) is slow: .* × the median of its peers", err)
    assert not re.search(r"rank [023] \(node 0.*is slow", err)


def test_the_ledger_reports_when_every_rank_reached_each_phase(start: Callable[..., Job], tmp_path: Path) -> None:
    job = start(f"dir={tmp_path}", "steps=20", script=STEPS, ranks=2)
    code, _, err = job.finish()
    assert code == 0, err
    lines = list(read_lines(RunFolder(job.folder).ledger))
    reached = {(line["phase"], line["rank"]): line["since_s"] for line in lines}
    node = [reached[(phase, None)] for phase in ("planned", "preloaded", "server", "met", "forked")]
    assert node == sorted(node)
    for rank in range(2):
        times = [reached[(phase, rank)] for phase in ("script", "groups", "first_step", "ended")]
        assert times == sorted(times)
        assert node[3] <= times[0]
    phases = {phase.phase: phase for phase in runs.phases(RunFolder(job.folder))}
    assert phases["first_step"].slowest_s >= phases["first_step"].median_s > phases["preloaded"].median_s
    text = runs.describe(runs.status(RunFolder(job.folder)), phases=list(phases.values()), progress=Progress())
    assert "done" in text[0]
    assert [re.sub(r" \(slowest.*|[\d.]+", "", line).strip() for line in text[1:]] == [
        f"s after the command {words}" for words in PHASE_WORDS.values()
    ]


def test_a_hang_before_the_process_group_is_found_with_all_stacks(hanging: dict[str, Job]) -> None:
    code, _, err = hanging["before the process group"].finish()
    assert code == 1
    assert "the job hangs: for 12 s no rank has printed anything" in err
    assert "odd one out: rank 2 is at a different place than the others" in err
    assert "rank 2 (step 0): hang_script.py:load_data < hang_script.py:<module>" in err
    assert re.search(r"rank 0 \(step 0\), 1 \(step 0\), 3 \(step 0\): .*init_process_group", err)


def test_a_plain_script_that_does_nothing_any_more_is_found(hanging: dict[str, Job]) -> None:
    code, _, err = hanging["in a plain script"].finish()
    assert code == 1
    assert "the job hangs: for 10 s no rank has printed anything" in err
    assert "rank 1 (step 0): hang_script.py:load_data" in err


def test_a_rank_that_works_keeps_the_others_from_being_silent(start: Callable[..., Job], tmp_path: Path) -> None:
    end = tmp_path / "end"
    job = start("busy=1", f"end={end}", script=HANGS, ranks=2, silence_timeout_s=3, start_timeout_s=None)
    job.wait_for(lambda: all("begins" in job.log(rank) for rank in range(2)))
    time.sleep(5)
    assert job.process.poll() is None
    end.touch()
    code, _, err = job.finish()
    assert code == 0, err


def test_a_rank_that_left_early_is_named_first(start: Callable[..., Job]) -> None:
    code, _, err = start("early=1", script=HANGS, ranks=3).finish()
    assert code == 1
    lines = [line for line in err.splitlines() if "left early" in line or "failed first" in line]
    assert re.match(r"launcher: rank 1 left early, with exit code 0, \d+\.\d s before", lines[0])
    assert "failed first" in lines[1]


def test_a_stopped_fork_server_is_continued_and_named(start: Callable[..., Job], tmp_path: Path) -> None:
    end = tmp_path / "end"
    job = start(f"dir={tmp_path}", f"until={end}", script=STEPS, ranks=2, max_restarts=1)
    wait_for_steps(job, tmp_path)
    server, rank = job.members()[0], job.rank_pid(0)
    os.kill(server, signal.SIGSTOP)
    os.kill(rank, signal.SIGKILL)
    job.wait_for(lambda: len(re.findall("begins after", job.log(0))) == 2)
    wait_for_steps(job, tmp_path)
    end.touch()
    code, _, err = job.finish()
    assert code == 0, err
    assert f"the fork server (pid {server}) was stopped" in err


def test_a_lost_terminal_stops_the_job_after_a_step_as_ctrl_c_does(start: Callable[..., Job], tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests that nohup started ignore it
    try:
        job = start(f"dir={tmp_path}", script=STEPS, ranks=2, grace_s=60)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for_steps(job, tmp_path)
    job.process.send_signal(signal.SIGHUP)
    code, _, err = job.finish()
    assert code == 1
    assert re.search(r"stopped by SIGHUP after step \d+", err)
    assert all("was asked to stop after step" in job.log(rank) for rank in range(2))


def test_a_hangup_that_is_ignored_stops_nothing(start: Callable[..., Job], tmp_path: Path) -> None:
    end = tmp_path / "end"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        job = start(f"dir={tmp_path}", f"until={end}", script=STEPS, ranks=2)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for_steps(job, tmp_path)
    job.process.send_signal(signal.SIGHUP)
    wait_for_steps(job, tmp_path)
    end.touch()
    code, _, err = job.finish()
    assert code == 0, err
