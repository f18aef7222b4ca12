"""A whole run by the command line, and the commands that inspect it afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import preloaded
import pytest

from launcher.run.folder import RunFolder
from launcher.run.node_state import node_states

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
TWO_RANKS = ["cluster.node.num_gpus=2", "layout.tp=1", "layout.pp=1", "layout.dp=2"]
SCRIPT = """
import json, os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(total)
print(f"rank {dist.get_rank()} of {os.environ['LAUNCHER_DP']} sums {total.item():.0f}")
if dist.get_rank() == 0:
    print(json.dumps(sys.argv[1:]))
dist.destroy_process_group()
"""


def launcher(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "launcher.cli", *words]
    return preloaded.run(argv, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a user's own script, in a folder with a name that needs quoting in a shell."""
    home = tmp_path_factory.mktemp("it's $(here)")
    (home / "train.py").write_text(SCRIPT)
    words = ["run", "script=train.py", "run_dir=my run; x", *TWO_RANKS, "--", "--lr", "3", "a b"]
    done = launcher(*words, cwd=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["rank 0 of 2 sums 3", '["--lr", "3", "a b"]']
    return home / "my run; x"


def test_status_reports_a_finished_run(folder: Path) -> None:
    done = launcher("status", folder.name, "output=json", cwd=folder.parent)
    assert [node["state"] for node in json.loads(done.stdout)["nodes"]] == ["done"]


def test_logs_hold_every_rank_or_one(folder: Path) -> None:
    everything = launcher("logs", folder.name, cwd=folder.parent).stdout
    assert "[rank 0] rank 0 of 2 sums 3" in everything
    assert "[rank 1] rank 1 of 2 sums 3" in everything
    one = launcher("logs", folder.name, "rank=1", cwd=folder.parent).stdout
    assert "rank 1 of 2 sums 3" in one
    assert "rank 0 of 2" not in one


def test_the_report_and_the_export_read_the_run(folder: Path) -> None:
    page = launcher("report", folder.name, cwd=folder.parent)
    assert Path(folder.parent / page.stdout.strip()).read_text().startswith("<!doctype html>")
    exported = launcher("export", folder.name, "to=deepspeed", cwd=folder.parent)
    assert json.loads(exported.stdout)["train_micro_batch_size_per_gpu"] >= 1


def test_cancel_stops_a_running_job_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "sleep.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(300)\n")
    argv = [
        sys.executable,
        "-m",
        "launcher.cli",
        "run",
        "script=sleep.py",
        "run_dir=run",
        "launch.grace_s=1",
        *TWO_RANKS,
    ]
    with preloaded.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert "asked process" in launcher("cancel", "run", cwd=tmp_path).stdout
        assert process.wait(timeout=240) == 1
    assert children_of(tmp_path) == []


def children_of(folder: Path) -> list[str]:
    """Processes that still work in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == folder:
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_the_main_job_trains_ends_with_json_and_stops_on_a_signal(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "launcher.cli", "run", "run_dir=run", "tracking=none", "train.steps=6"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert [document["layout"][axis] for axis in ("tp", "pp", "dp")] == [2, 2, 2]
    assert document["losses"]["last"] < document["losses"]["first"] - 0.3
    assert document["predicted_step_time_s"] > 0
    assert document["measured_step_time_s"] > 0


def test_a_killed_rank_ends_the_job_with_its_number_and_log(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "launcher.cli", "run", "run_dir=run", "tracking=none", "train.steps=10000"]
    with preloaded.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        metrics = RunFolder(tmp_path / "run").metrics
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 0)
        os.kill(pid_of_rank(tmp_path / "run", rank=5), signal.SIGKILL)
        _, errors = process.communicate(timeout=240)  # a hang would run into gloo's 30 minutes
        assert process.returncode == 1
    assert "rank 5" in errors
    assert "SIGKILL" in errors
    assert "rank-5.log" in errors
    assert children_of(tmp_path) == []


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 240) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def pid_of_rank(folder: Path, *, rank: int) -> int:
    """Return the process with the rank in its environment; forked ranks are recorded in the run folder."""
    return node_states(RunFolder(folder))[0].ranks[rank]
