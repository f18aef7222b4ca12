"""launch.login: a job that is submitted from a login node by a real ssh, and followed from here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import preloaded
import pytest
from slurm_lab import PATH, Slurm
from sshd_settings import login_node

from launcher.run.folder import RunFolder

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]
TALKING = 'echo "*** Welcome ***"; eval "$SSH_ORIGINAL_COMMAND"; code=$?; echo Bye; exit $code'  # as some logins do
SCRIPT = """
import sys, time
from pathlib import Path
import helper
print(helper.WORD, Path("data.txt").read_text(), sys.argv[1:], flush=True)
Path("started").touch()
while sys.argv[1] == "wait":
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def login(cluster: Slurm) -> Iterator[list[str]]:
    """An sshd on this machine that stands for the login node; the words of the launcher that lead there."""
    variables = f'SetEnv "PATH={PATH}" SLURM_CONF={cluster.environment["SLURM_CONF"]} OMP_NUM_THREADS=1'
    with login_node(TALKING, variables) as (words, _):
        yield [*words]


def launcher(at: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The launcher on a machine without Slurm."""
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_CONF"}
    command = [sys.executable, "-P", "-m", "launcher.cli", *words]
    return preloaded.run(command, cwd=at, env=environment, capture_output=True, text=True, timeout=240)


def follower(at: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "launcher.cli", "logs", "runs/stopped", "--rank", "0", "--follow"]
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_CONF"}
    return subprocess.Popen(command, cwd=at, env=environment, stdout=subprocess.PIPE, text=True)


def readers(run: Path) -> list[list[str]]:
    """The commands on the login node that print this run's log."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # of a process that has ended
            words = entry.read_text(errors="replace").split("\0")
            if "python" in words[0] and "logs" in words and str(run) in words:
                found.append(words)
    return found


def test_a_job_is_sent_to_a_login_node_and_followed_from_here(slurm: Slurm, login: list[str], tmp_path: Path) -> None:
    laptop = tmp_path / "lap top" / "work"
    laptop.mkdir(parents=True)
    for name, text in {"train.py": SCRIPT, "helper.py": "WORD = 'sent'\n", "data.txt": "data", "big.log": ""}.items():
        (laptop / name).write_text(text)
    (laptop / ".gitignore").write_text("*.log\nruns\n")
    slurm.run("git", "init", "-q", str(laptop.parent))
    job = ["submit", f"script={laptop}/train.py", "cluster=testcluster", "cluster.num_nodes=1", *login]
    job += ["cluster.node.num_gpus=2", "launch.exclude=side[1-3]"]

    dry = launcher(laptop, *job, "dry_run=true", "--", "x")
    assert dry.returncode == 0 and "launcher submit script=train.py" in dry.stdout and not (laptop / "runs").exists()

    done = launcher(laptop, *job, "run_dir=runs/mine", "--", "end", "a b")
    assert done.returncode == 0, done.stderr
    assert "code: 4 files, " in done.stderr and ", packed " in done.stderr
    job_id, folder = done.stdout.strip(), RunFolder(laptop / "runs" / "mine")
    there = Path(json.loads(folder.login.read_text())["folder"])
    assert there.parent == Path(login[2].partition("=")[2]) and not (there / "code" / "work" / "big.log").exists()
    slurm.wait(job_id, "COMPLETED")
    status = launcher(laptop, "status", "last")
    assert status.returncode == 0 and f"job {job_id}: COMPLETED" in status.stdout, status.stderr
    assert f"job {job_id}, submitted from root@127.0.0.1" in launcher(laptop, "ls").stdout
    assert "sent data ['end', 'a b']" in launcher(laptop, "logs", "runs/mine", "--rank", "1").stdout
    assert launcher(laptop, "report", "last").stdout.strip() == "runs/mine/report.html"
    assert "<html" in folder.report.read_text()
    assert (
        "only status, logs, cancel, report follow it" in launcher(laptop, "export", "last", "to=srun", "out=x").stderr
    )

    done = launcher(laptop, *job, "run_dir=runs/stopped", "--", "wait")
    there = Path(json.loads(RunFolder(laptop / "runs" / "stopped").login.read_text())["folder"])
    deadline = time.monotonic() + 400
    while not (there / "code" / "work" / "started").exists():
        assert time.monotonic() < deadline, slurm.logs()
        time.sleep(0.2)
    leaving, staying = (follower(laptop) for _ in range(2))
    try:
        for follows in (leaving, staying):
            assert follows.stdout and any(line == "sent data ['wait']\n" for line in follows.stdout)
        assert len(readers(there)) == 2
        leaving.terminate()
        while len(readers(there)) > 1:  # the job says nothing more, so none of them writes
            assert time.monotonic() < deadline, readers(there)
            time.sleep(0.2)
        assert "is being cancelled" in launcher(laptop, "cancel", "runs/stopped").stdout
        rest, _ = staying.communicate(timeout=200)
        assert staying.returncode == 0, rest
        assert readers(there) == []
    finally:
        for follows in (leaving, staying):
            follows.kill()
            follows.communicate()
    while "CANCELLED" not in (found := launcher(laptop, "status", "runs/stopped", "output=json").stdout):
        assert time.monotonic() < deadline, found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["script=train.py", "cluster.num_nodes=99"], "the job needs 99 nodes"),
        (
            ["script=train.py", "launch.login=root@127.0.0.1", "launch.login_ssh=-p 1"],
            "ssh does not reach root@127.0.0.1",
        ),
        (["script=train.py", "launch.login_python=/no/python"], "/no/python on root@127.0.0.1 did not answer"),
        (["script=train.py", "launch.login=root@127.0.0.1:22"], "a port goes into launch.login_ssh"),
        (["script=/etc/passwd"], "is in no git repository"),
    ],
    ids=["Slurm refuses", "no connection", "no interpreter", "a port", "no code"],
)
def test_what_cannot_be_submitted_there_leaves_nothing_here_or_there(
    slurm: Slurm, login: list[str], tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "train.py").write_text("")
    slurm.run("git", "init", "-q", str(tmp_path))
    jobs = Path(login[2].partition("=")[2])
    before = sorted(jobs.glob("*"))
    done = launcher(tmp_path, "submit", "cluster=testcluster", *login, *words, "run_dir=run", "output=json")
    assert done.returncode in (1, 2) and said in done.stderr, done
    assert json.loads(done.stdout)["error"]["exit_code"] == done.returncode
    assert not (tmp_path / "run").exists() and sorted(jobs.glob("*")) == before
