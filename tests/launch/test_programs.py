"""A user's own program of any kind under `launcher run`: what it gets, how it is asked to stop, what it leaves."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import preloaded
import pytest

from launcher import process
from launcher.agent.stopping import is_urgent
from launcher.cli import main
from launcher.run import status as runs
from launcher.run.folder import RunFolder

slow = pytest.mark.slow
COMMAND = [sys.executable, "-P", "-m", "launcher.cli", "run", "run_dir=run", "launch.warm=never"]
SAYS = """
import json, os, sys
from pathlib import Path
said = {"argv": sys.argv[1:], "name": __name__, "package": __package__, "mark": os.environ.get("MARK"),
        "wandb": [os.environ.get("WANDB_RUN_GROUP"), os.environ.get("WANDB_NAME")]}
Path(f"said-{os.environ['RANK']}.json").write_text(json.dumps(said))
"""
HANDLES = """
import os, signal, subprocess, sys, time
from pathlib import Path
rank = os.environ["RANK"]
child = subprocess.Popen(["sleep", "100"])
def save(number, frame):
    time.sleep(1.0)
    while not Path("may-end").exists():
        time.sleep(0.05)
    alive = child.poll() is None
    Path(f"saved-{rank}.txt").write_text(f"{signal.Signals(number).name} {alive}")
    child.kill()
    sys.exit(0)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, save)
Path(f"up-{rank}").touch()
while True:
    time.sleep(0.05)
"""

# Rank 0 ends as soon as rank 1 has failed, which then takes its time.
FAILS = """
import atexit, os, time
from pathlib import Path
rank, failed = int(os.environ["RANK"]), Path("failed")
rows = open(f"rows-{rank}", "w")
rows.write("x" * 10)
def end():
    if rank == 1:
        failed.touch()
        time.sleep(1.5)
    while not failed.exists():
        time.sleep(0.05)
atexit.register(end)
raise ValueError("on both ranks")
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `launcher run` in the test's folder."""
    monkeypatch.delenv("MARK", raising=False)  # which programs here report
    jobs: list[subprocess.Popen[str]] = []

    def started(*words: str, ranks: int = 2, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        split = words.index("--") if "--" in words else len(words)
        argv = [*COMMAND, f"launch.nproc_per_node={ranks}", *words[:split], *words[split:]]
        jobs.append(
            preloaded.Popen(argv, cwd=tmp_path, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return jobs[-1]

    yield started
    for job in jobs:
        if job.poll() is None:  # else its number may be another's by now
            process.signal_all([*process.descendants(job.pid), job.pid], signal.SIGKILL)
        job.communicate()


def said(folder: Path, rank: int) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / f"said-{rank}.json").read_text())
    return found


@slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_module_runs_as_python_m_runs_it(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, method: str
) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "train.py").write_text(SAYS)
    job = start("module=pkg.train", f"launch.start={method}", "--", "--lr", "a b")
    _, err = job.communicate(timeout=240)
    assert job.returncode == 0, err
    for rank in range(2):
        found = said(tmp_path, rank)
        assert found.pop("wandb") == ["run", ("run", "run-rank-1")[rank]]
        assert found == {"argv": ["--lr", "a b"], "name": "__main__", "package": "pkg", "mark": None}


@slow
def test_a_program_of_any_kind_is_executed_by_each_rank(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    program = tmp_path / "run it.sh"
    program.write_text('#!/bin/sh\necho "$RANK of $WORLD_SIZE: $*" > "said-$RANK.txt"\nexit $RANK\n')
    program.chmod(0o755)
    job = start("program=./run it.sh", "launch.exit_code=first", "--", "two words", "x=1")
    _, err = job.communicate(timeout=240)
    assert job.returncode == 1, err
    assert [(tmp_path / f"said-{rank}.txt").read_text() for rank in range(2)] == [
        "0 of 2: two words x=1\n", "1 of 2: two words x=1\n"]  # fmt: skip


@slow
def test_a_wrapper_is_put_before_each_rank_with_its_values(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(SAYS)
    job = start(
        "script=train.py", "launch.wrapper=env MARK='{rank} {local_rank} {node} {run_dir} {{}}' nice", "--", "x"
    )
    _, err = job.communicate(timeout=240)
    assert job.returncode == 0, err
    for rank in range(2):
        assert said(tmp_path, rank)["mark"] == f"{rank} {rank} 0 {tmp_path}/run {{}}"
        assert said(tmp_path, rank)["argv"] == ["x"]


@slow
def test_another_python_starts_the_script_and_needs_no_launcher(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    other = tmp_path / "python of another environment"
    other.write_text(f'#!/bin/sh\nMARK="$1 $#" exec {sys.executable} -S -I "$@"\n')
    other.chmod(0o755)
    (tmp_path / "train.py").write_text(SAYS)
    job = start("script=train.py", f"launch.python={other}", "--", "x")
    _, err = job.communicate(timeout=240)
    assert job.returncode == 0, err
    assert said(tmp_path, 1)["mark"] == "-u 3"


@slow
@pytest.mark.parametrize(
    ("key", "reads"), [("launch.stdin_rank=0", 0), ("launch.stdin_rank=1", 1), ("launch.stdin_rank=null", None)]
)
def test_one_rank_reads_standard_input(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, key: str, reads: int | None
) -> None:
    (tmp_path / "train.py").write_text(
        "import os, sys; open(f\"in-{os.environ['RANK']}\", 'w').write(sys.stdin.read())"
    )
    job = start("script=train.py", key, stdin=subprocess.PIPE)
    _, err = job.communicate("a line\n", timeout=240)
    assert job.returncode == 0, err
    assert [(tmp_path / f"in-{rank}").read_text() for rank in range(2)] == [
        "a line\n" * (rank == reads) for rank in (0, 1)
    ]


@slow
def test_a_debugger_prompt_works_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("value = 41\nbreakpoint()\nprint('went on')\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [*COMMAND, "launch.nproc_per_node=1", "script=train.py"])
    shown = ""
    try:
        for waits, types in (("(Pdb) ", "p value + 1\n"), ("42", "c\n"), ("went on", "")):
            deadline = time.monotonic() + 120
            while waits not in shown:
                assert time.monotonic() < deadline, shown
                if select.select([terminal], [], [], 1)[0]:
                    shown += os.read(terminal, 4096).decode()
            os.write(terminal, types.encode())
    finally:
        os.close(terminal)
        process.signal_all([*process.descendants(pid), pid], signal.SIGKILL)
        os.waitpid(pid, 0)


@slow
@pytest.mark.parametrize(
    ("words", "body", "code"),
    [
        (["launch.exit_code=first"], "sys.exit(7 if rank == '1' else time.sleep(60))", 7),
        (["launch.exit_code=first"], "os.kill(os.getpid(), 9) if rank == '1' else time.sleep(60)", 137),
        ([], "sys.exit(7)", 1),
    ],
    ids=["code", "signal", "job"],
)
def test_the_exit_code_is_the_first_failed_ranks_where_that_is_wanted(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, words: list[str], body: str, code: int
) -> None:
    (tmp_path / "train.py").write_text(f"import os, sys, time\nrank = os.environ['RANK']\n{body}\n")
    job = start("script=train.py", *words)
    job.communicate(timeout=240)
    assert job.returncode == code


@slow
def test_a_rank_that_fails_with_another_writes_what_it_has_open(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(FAILS)
    job = start("script=train.py", "launch.kill_after_s=60")
    job.communicate(timeout=240)
    assert job.returncode == 1
    assert [len((tmp_path / f"rows-{rank}").read_text()) for rank in range(2)] == [10, 10]


@pytest.mark.parametrize(
    ("came", "urgent"),
    [("INT", False), ("TERM USR1", False), ("USR1 TERM", False), ("INT INT", True), ("USR1 USR1", True),
     ("INT TERM", True), ("TERM USR1 HUP", True)],
)  # fmt: skip
def test_a_second_request_is_urgent_and_slurms_two_signals_are_one_request(came: str, urgent: bool) -> None:
    assert is_urgent([signal.Signals[f"SIG{name}"] for name in came.split()]) is urgent


@slow
@pytest.mark.parametrize(
    ("came", "words", "handled"),
    [
        (signal.SIGTERM, [], "SIGTERM True"),
        (signal.SIGUSR1, ["launch.stop_signals=[TERM,USR1]"], "SIGUSR1 True"),
        (signal.SIGINT, [], "SIGTERM True"),
        ([signal.SIGTERM, signal.SIGUSR1], ["launch.stop_signals=[TERM,USR1]"], "SIGTERM True"),  # preemption by Slurm
        (signal.SIGTERM, ["launch.forward_signal=USR1", "launch.start=spawn"], "SIGUSR1 True"),
        (signal.SIGTERM, ["launch.forward_signal=none"], None),
    ],
    ids=["TERM", "USR1", "INT", "TERM and USR1", "as USR1", "none"],
)
def test_a_script_that_handles_a_signal_gets_it_and_the_time_to_save(
    start: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    came: signal.Signals | list[signal.Signals],
    words: list[str],
    handled: str | None,
) -> None:
    first, *others = came if isinstance(came, list) else [came]
    (tmp_path / "train.py").write_text(HANDLES)
    job = start("script=train.py", "launch.kill_after_s=0.2", "launch.grace_s=200", *words)
    deadline = time.monotonic() + 240
    while not all((tmp_path / f"up-{rank}").exists() for rank in range(2)):
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    began = time.monotonic()
    job.send_signal(first)
    for other in others:
        while (state := runs.status(RunFolder(tmp_path / "run")).nodes[0].state) != "stopping":
            assert state == "running" and time.monotonic() < deadline
        job.send_signal(other)
    (tmp_path / "may-end").touch()
    _, err = job.communicate(timeout=240)
    assert job.returncode == 1
    assert f"stopped by {first.name}" in err
    saved = [(tmp_path / f"saved-{rank}.txt") for rank in range(2)]
    if handled is None:
        assert not any(path.exists() for path in saved)
    else:
        assert [path.read_text() for path in saved] == [handled, handled]
        assert f"passed on as {handled.split()[0]}" in err
        assert time.monotonic() - began < 200  # launch.grace_s: they have ended by themselves


WRONG = {
    "module=no.such": "there is no module no in",
    "module=json.no_such": "there is no module json.no_such in",
    "script=pkg.train": "a module is given as module=pkg.train",
    "script=run.sh": "a program of another kind is given as program=",
    "program=run.sh": "is not executable: chmod +x run.sh",
    "program=no-such-program": "is not found",
}


@pytest.mark.parametrize("word", WRONG)
def test_a_program_that_cannot_run_is_refused_before_anything_starts(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/sh\nexit 0; done\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    assert main(["run", word, "dry_run=true"]) == 2
    assert WRONG[word] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("launch.wrapper=no-such-wrapper -o x", "launch.wrapper=no-such-wrapper is not found"),
        ("launch.wrapper=env {gpu}", "it may use {rank}"),
        ("launch.python=/no/python", "launch.python=/no/python is not found"),
    ],
)
def test_what_cannot_start_a_rank_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    (tmp_path / "train.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    assert main(["run", "script=train.py", "dry_run=true", word]) == 2
    assert said in capsys.readouterr().err


@slow
def test_the_environment_of_launch_wins_and_what_torch_reads_at_import_is_honoured(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", "of the shell")
    (tmp_path / "says.py").write_text(
        "import os, torch\n"
        "said = [os.environ['MARK'], os.environ['OMP_NUM_THREADS'], torch.get_num_threads()]\n"
        "print(*said, torch.distributed.get_debug_level())\n"
    )
    words = "launch.environment={MARK: of launch, OMP_NUM_THREADS: '1', TORCH_DISTRIBUTED_DEBUG: DETAIL}"
    job = start("script=says.py", words, ranks=1)
    out, said = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert out.splitlines()[-1] == "of launch 1 1 DebugLevel.DETAIL"
    assert "TORCH_DISTRIBUTED_DEBUG, which torch reads at its import" in said
