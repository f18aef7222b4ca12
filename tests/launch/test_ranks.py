"""Real ranks, started, watched and ended by `run_local`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import preloaded
import pytest
from jobs import HERE, Job, gone

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_all_ranks_run_the_script_and_rank_0_owns_stdout(start: Callable[..., Job], method: str) -> None:
    code, out, err = start(ranks=4, start=method).finish()
    assert code == 0, err
    assert json.loads(out.splitlines()[-1]) == {"sum": 6.0, "master": "127.0.0.1"}
    assert "rank 0 of 4 has 6" in err
    assert "rank 1 of 4" not in err


def test_logs_hold_what_each_rank_said(start: Callable[..., Job]) -> None:
    job = start("plain", "two words", "é'\"$(x)", ranks=3)
    code, _, err = job.finish()
    assert code == 0, err
    for rank in range(3):
        said = json.loads(job.log(rank).splitlines()[-1])
        assert said["rank"] == rank
        assert said["name"] == "__main__"
        assert said["argv"][1:] == ["plain", "two words", "é'\"$(x)"]
        assert said["threads"] == "1"
        assert said["import_cpu_s"] < 0.2  # torch was imported before the fork: a second otherwise


def test_console_all_shows_every_rank_with_its_number(start: Callable[..., Job]) -> None:
    code, out, err = start(ranks=3, console="all").finish()
    assert code == 0
    assert {f"[rank {r}] rank {r} of 3 has 3" for r in range(3)} <= set(err.splitlines())
    assert out.startswith('[rank 0] {"sum"')


def test_the_rank_that_raised_first_is_named_with_its_traceback_and_log(start: Callable[..., Job]) -> None:
    job = start("fail=2")
    code, _, err = job.finish()
    assert code == 1
    assert re.search(r"rank 2 failed first \(local rank 2 of node 0, .*\): exit code 1", err)
    reported = err[err.index("rank 2 failed first") :]
    assert "ValueError: rank 2 broke on purpose" in reported
    assert "runpy" not in reported
    assert str(job.folder / "logs" / "rank-2.log") in reported


def test_an_exit_code_without_a_traceback_is_reported(start: Callable[..., Job]) -> None:
    code, _, err = start("exit=1:7", ranks=2).finish()
    assert code == 1
    assert "rank 1 failed first" in err
    assert "exit code 7" in err


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_killed_rank_ends_the_job_and_leaves_no_process(start: Callable[..., Job], method: str) -> None:
    job = start("loop", "child", start=method)
    job.wait_until_looping()
    members = job.members()
    os.kill(job.rank_pid(1), signal.SIGKILL)
    code, _, err = job.finish()
    assert code == 1
    assert "rank 1 failed first" in err
    assert "killed by SIGKILL (9)" in err
    assert str(job.folder / "logs" / "rank-1.log") in err
    assert len(members) == 9  # the server, four ranks, a child of each
    assert gone(members)


def test_ctrl_c_ends_a_script_that_ignores_stops_at_once(start: Callable[..., Job]) -> None:
    job = start("loop", "child")
    job.wait_until_looping()
    members = job.members()
    job.process.send_signal(signal.SIGINT)
    code, _, err = job.finish()
    assert code == 1
    assert "stopped by SIGINT" in err
    assert "Traceback" not in err
    assert gone(members)


@pytest.mark.parametrize("victim", ["agent", "server", "agent of a stopped server"])
def test_no_rank_outlives_the_process_that_started_it(start: Callable[..., Job], victim: str) -> None:
    job = start("loop", "child")
    job.wait_until_looping()
    members = job.members()
    if victim == "agent of a stopped server":
        os.kill(members[0], signal.SIGSTOP)
    os.kill(members[0] if victim == "server" else job.process.pid, signal.SIGKILL)
    code, _, err = job.finish()
    assert gone(members)
    if victim == "server":
        assert code == 1
        assert "fork server" in err
        assert "Traceback" not in err


def test_a_process_with_threads_is_not_forked(
    start: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=[1000], daemon=True).start()"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, _, err = start(preload=["threaded"]).finish()
    assert code == 1
    assert "2 threads" in err
    assert "launch.start=spawn" in err


def test_a_thread_that_is_about_to_end_is_waited_for() -> None:
    """As one that was joined, which the kernel still lists for a moment."""
    code = (
        "import _thread; from launcher import process; from launcher.agent.fork_server import check_forkable\n"
        "may_end = _thread.allocate_lock(); may_end.acquire(); _thread.start_new_thread(may_end.acquire, ())\n"
        "assert not process.has_one_thread(); may_end.release(); check_forkable(); assert process.has_one_thread()"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)


def test_a_module_that_does_not_exist_is_reported_before_anything_starts(start: Callable[..., Job]) -> None:
    code, _, err = start(preload=["no_such_module_at_all"]).finish()
    assert code == 2
    assert "no_such_module_at_all" in err
    assert "launch.preload" in err


def test_processes_of_the_caller_are_left_alone(tmp_path: Path) -> None:
    code = f"""
import json, signal, subprocess, sys
sys.path.insert(0, {str(HERE)!r})
import driver
other = subprocess.Popen(["sleep", "1000"])
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
code = driver.main({str(tmp_path / "run")!r}, {str(HERE / "job_script.py")!r}, "2", "{{}}", "child")
print(json.dumps([code, other.poll(), before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))]))
other.kill()
"""
    done = preloaded.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, None, True], done.stderr


def test_the_last_words_of_an_abort_are_its_reason_and_the_scripts_frames(
    start: Callable[..., Job], tmp_path: Path
) -> None:
    script = tmp_path / "aborts.py"
    script.write_text("import os\nprint('an early word')\nos.write(2, b'terminate called: no more\\n')\nos.abort()\n")
    _, _, err = start(ranks=2, script=script).finish()
    assert "killed by SIGABRT (6)" in err
    said = [line.strip() for line in err[err.index("its last words:") :].splitlines()[1:]]
    assert said[:3] == ["an early word", "terminate called: no more", "Fatal Python error: Aborted"]
    assert said[3].startswith("Current thread 0x")
    assert said[4:] == [f'File "{script}", line 4 in <module>']
