"""Commands on one run folder at the same time, from outside."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import preloaded
import pytest

from launcher.run.folder import RunFolder

pytestmark = pytest.mark.slow
LAUNCHER = [sys.executable, "-m", "launcher.cli"]
SHAPE = ["cluster.node.num_gpus=2", "layout.tp=1", "layout.pp=1", "layout.dp=2"]
RUN = ["run", "script=sleep.py", "run_dir=run", "launch.warm=never", "launch.grace_s=1", *SHAPE]


def launcher(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return preloaded.run([*LAUNCHER, *words], cwd=cwd, capture_output=True, text=True, timeout=240)


@contextmanager
def running(cwd: Path, *, until: str) -> Iterator[subprocess.Popen[str]]:
    """A run in `cwd`/run, from the moment its messages hold `until`."""
    (cwd / "sleep.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(300)\n")
    with (cwd / "err").open("w") as err:
        job = preloaded.Popen([*LAUNCHER, *RUN], cwd=cwd, stdout=err, stderr=err, text=True)
    try:
        deadline = time.monotonic() + 240
        while until not in (cwd / "err").read_text():
            assert job.poll() is None and time.monotonic() < deadline, (cwd / "err").read_text()
            time.sleep(0.02)
        yield job
    finally:
        job.terminate()
        job.wait(240)


def content(path: Path) -> dict[str, bytes | None]:
    """What commands write into a run folder, and the run itself does not while it goes on."""
    folder = RunFolder(path)
    files = (folder.plan, folder.plan_of_start, folder.config, folder.owner, folder.launch, folder.setup)
    return {file.name: file.read_bytes() if file.exists() else None for file in files}


def test_while_a_run_goes_on_no_other_command_writes_into_its_folder(tmp_path: Path) -> None:
    with running(tmp_path, until="\nup\n"):
        before = content(tmp_path / "run")
        others = {
            "run": launcher(*RUN, "train.global_batch=8", cwd=tmp_path),
            "submit": launcher("submit", "script=sleep.py", "run_dir=run", *SHAPE, cwd=tmp_path),
            "plan": launcher("plan", "run_dir=run", *SHAPE, cwd=tmp_path),
            "dry run": launcher("submit", "script=sleep.py", "run_dir=run", "dry_run=true", *SHAPE, cwd=tmp_path),
        }
        assert content(tmp_path / "run") == before
    for name in ("run", "submit", "plan"):
        assert others[name].returncode == 2
        assert "is running as process" in others[name].stderr
        assert len(others[name].stderr.splitlines()) == 1, others[name].stderr
    assert others["dry run"].returncode == 0
    assert "is not changed" in others["dry run"].stderr


def test_a_run_can_be_seen_and_cancelled_as_soon_as_its_folder_is_printed(tmp_path: Path) -> None:
    with running(tmp_path, until="run folder: run") as job:
        seen = launcher("status", "run", cwd=tmp_path).stdout
        assert re.match(r"starting \(process|node 0 \(.*: running", seen), seen  # ranks may have been faster than it
        assert "asked process" in launcher("cancel", "run", cwd=tmp_path).stdout
        assert job.wait(240) == 1
    assert "SIG" not in (tmp_path / "err").read_text()
    done = launcher("status", "run", "output=json", cwd=tmp_path)
    assert json.loads(done.stdout)["state"] == "cancelled"


def test_a_cancel_of_running_ranks_is_reported_as_a_cancel(tmp_path: Path) -> None:
    with running(tmp_path, until="\nup\n") as job:
        launcher("cancel", "run", cwd=tmp_path)
        assert job.wait(240) == 1
    assert "stopped by `launcher cancel`" in (tmp_path / "err").read_text()
    assert "cancelled" in launcher("status", "run", cwd=tmp_path).stdout
    assert "nothing runs in run" in launcher("cancel", "run", cwd=tmp_path).stdout


def test_a_run_that_nobody_watches_any_more_goes_on_to_its_end(tmp_path: Path) -> None:
    """`launcher run 2>&1 | head -1`: the exit code is that of what ran, not of the pipe."""
    (tmp_path / "fail.py").write_text("raise SystemExit(3)\n")
    words = ["run", "script=fail.py", "run_dir=run", "launch.warm=never", *SHAPE]
    command = f"{' '.join([*LAUNCHER, *words])} 2>&1 | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines()[-1] == "1"
    assert RunFolder(tmp_path / "run").rank_log(0).is_file()


@pytest.mark.parametrize("words", [["plan"], ["logs", "run"]], ids=["plan", "logs"])
def test_a_closed_pipe_is_no_error_worth_a_word(words: list[str], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.logs.mkdir(parents=True)
    folder.rank_log(0).write_text("a line\n" * 100_000)
    command = f"{' '.join([*LAUNCHER, *words])} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (done.stderr, done.stdout) == ("", "141\n")
