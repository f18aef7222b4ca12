"""`launcher run` from the outside: exit codes, last words, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import HERE, gone

from launcher import process
from launcher.run import status as runs
from launcher.run.folder import RunFolder
from launcher.run.node_state import node_states

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("ending", ["rank killed", "Ctrl-C"])
def test_a_run_that_is_broken_off_ends_with_code_1_and_leaves_nothing(ending: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    command = [
        sys.executable, "-m", "launcher.cli", "run", f"script={HERE / 'job_script.py'}", f"run_dir={folder.path}",
        "cluster.node.num_gpus=2", "layout.tp=1", "layout.pp=1", "layout.dp=2", "launch.warm=never", "--", "loop",
    ]  # fmt: skip
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 240
        while not all(" has " in _read(folder.rank_log(rank)) for rank in range(2)):
            assert time.monotonic() < deadline
            assert job.poll() is None, job.communicate()[1]
            time.sleep(0.02)
        members = process.descendants(job.pid)
        if ending == "Ctrl-C":
            job.send_signal(signal.SIGINT)
        else:
            os.kill(node_states(folder)[0].ranks[1], signal.SIGKILL)
        out, err = job.communicate(timeout=240)
    finally:
        if job.poll() is None:
            process.signal_all([*process.descendants(job.pid), job.pid], signal.SIGKILL)
    assert job.returncode == 1
    assert out == ""
    assert gone(members)
    node = runs.status(folder).nodes[0]
    if ending == "Ctrl-C":
        assert "stopped by SIGINT" in err
        assert node.verdict == "stopped"
    else:
        assert "rank 1 failed first" in err
        assert "killed by SIGKILL (9)" in err
        assert f"its log: {folder.rank_log(1)}" in err
        assert node.verdict == "failed"


def test_ctrl_c_while_planning_ends_the_command_and_its_child_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launcher.cli", "run", "run_dir=run", "launch.warm=never"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    while not (planner := process.descendants(job.pid)):
        assert job.poll() is None
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=240)
    assert (job.returncode, out) == (130, "")
    assert "interrupted" in err
    assert "Traceback" not in err
    assert gone(planner)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
