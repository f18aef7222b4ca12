"""Every command where terminal, streams, home or runtime folder are not as usual: it works or says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from launcher.commands import table
from launcher.errors import LauncherError
from launcher.faststart import warm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "lint" / "scripts" / "clean.sbatch"
JOB = ("cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64")
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
COMMANDS = {
    "plan": ("plan", *JOB, "top=2"),
    "plan json": ("plan", *JOB, "top=1", "output=json"),
    "submit": ("submit", *JOB, "dry_run=true", "run_dir={run}"),
    "run": ("run", "cluster=cpu", "dry_run=true"),
    "report": ("report", "{run}"),
    "status": ("status", "{run}"),
    "logs": ("logs", "{run}"),
    "lint": ("lint", str(SCRIPT)),
    "check": ("check", "cluster=cpu", "cluster.node.num_gpus=1"),
    "discover": ("discover", "name=odd"),
    "export": ("export", *JOB, "to=torchtitan", "out={run}-titan"),
    "help": ("plan", "--help"),
    "warm": ("warm", "status"),
    "show": ("show", "cluster=dgx_a100_80g"),
    "ls": ("ls",),
    "keys": ("keys", "launch.time"),
    "compare": ("compare", "{run}", "{run}"),
    "cancel": ("cancel", "{run}"),
    "sync": ("sync", "{run}", "dry_run=true"),
    "new": ("new", "recipe", "odd"),
    "completion": ("completion", "bash"),
    "calibrate": ("calibrate", "/no/where.txt", "cluster=dgx_a100_80g"),
    "tune": ("tune", "cluster=cpu", "dry_run=true"),
}
# What they do here is to say why not: nothing runs, nothing was measured.
MAY_REFUSE = ("status", "logs", "check", "warm", "cancel", "sync", "calibrate")
NOBODY = 54321  # has no entry in passwd, and so no home but $HOME
# Another user, who may read what is root's, as the interpreter and the package may be, and write nothing of it.
STRANGER = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user, with setpriv"
)


# The commands of argv, each in a fork of one interpreter that was started in the surroundings: it imports the launcher
# once for all. What a command writes to a pipe goes into a file of its own; closed and other streams stay as they are.
EACH = """
import importlib, json, os, pkgutil, stat, sys, traceback
import launcher.cli, launcher.commands
for module in pkgutil.iter_modules(launcher.commands.__path__):
    importlib.import_module(f"launcher.commands.{module.name}")
codes = []
for number, words in enumerate(json.loads(sys.argv[1])):
    if (pid := os.fork()) == 0:
        for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
            if stream and stat.S_ISFIFO(os.fstat(fd).st_mode):
                file = os.open(f"said-{number}-{fd}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                os.dup2(file, fd)
                os.close(file)
        sys.argv = ["launcher", *words]
        try:
            launcher.cli.command()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
with open("codes.json", "w") as file:
    json.dump(codes, file)
"""
Done = subprocess.CompletedProcess[bytes]


def call(folder: Path, *words: str, stranger: bool = False, **variables: str | None) -> Done:
    """A command in `folder`. None takes a variable away."""
    python = f"exec {sys.executable} -m launcher.cli"
    return in_shell(folder, python, *_words(folder, words), stranger=stranger, **variables)


def call_each(folder: Path, names: Iterable[str], *, redirect: str = "", **options: Any) -> dict[str, Done]:
    """Commands in `folder`, through a shell that closes or opens their streams."""
    names = list(names)
    for name in names:
        for fd in (1, 2):
            (folder / f"said-{names.index(name)}-{fd}").unlink(missing_ok=True)
    words = json.dumps([_words(folder, COMMANDS[name]) for name in names])
    all_done = in_shell(folder, f"exec {sys.executable} -c '{EACH}'", words, redirect=redirect, **options)
    assert (all_done.returncode, all_done.stderr) == (0, b""), all_done.stderr.decode(errors="replace")
    codes = json.loads((folder / "codes.json").read_text())
    return {name: Done(COMMANDS[name], code, *(_said(folder, number, fd) for fd in (1, 2)))
            for number, (name, code) in enumerate(zip(names, codes, strict=True))}  # fmt: skip


def _words(folder: Path, words: tuple[str, ...]) -> list[str]:
    return [word.format(run=folder / "run") for word in words]


def _said(folder: Path, number: int, fd: int) -> bytes:
    path = folder / f"said-{number}-{fd}"
    return path.read_bytes() if path.exists() else b""


def in_shell(
    folder: Path, python: str, *words: str, redirect: str = "", stranger: bool = False, **variables: str | None
) -> Done:
    environment = {**os.environ, "HOME": str(folder), **variables}
    unset = {"XDG_RUNTIME_DIR": None} if "XDG_RUNTIME_DIR" not in variables else {}
    return subprocess.run(
        [
            *(STRANGER if stranger else ()),
            *("bash", "-c", f'export PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1; {python} "$@" {redirect}', "bash"),
            *words,
        ],
        env={name: value for name, value in {**environment, **unset}.items() if value is not None},
        capture_output=True, cwd=folder, timeout=300,
    )  # fmt: skip


def assert_sound(done: Done, *codes: int) -> None:
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert b"Traceback" not in done.stderr, said
    assert b"Error: " not in done.stderr, said
    assert done.returncode in codes, said


def assert_all_work(folder: Path, *, encoding: str, **options: Any) -> None:
    """Each command, on a terminal of this encoding, which gets what it can show."""
    for name, done in call_each(folder, COMMANDS, **ASCII, PYTHONIOENCODING=encoding, **options).items():
        done.stdout.decode(encoding)
        assert_sound(done, *((0, 1, 2) if name in MAY_REFUSE else (0,)))


def test_every_command_is_among_those_that_are_tried() -> None:
    assert {words[0] for words in COMMANDS.values()} == set(table.COMMANDS)


@pytest.mark.parametrize("redirect", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "</dev/full >/dev/full"])
def test_closed_streams_stop_no_command(redirect: str, tmp_path: Path) -> None:
    names = ("submit", "plan", "run", "check", "lint", "report")
    for name, done in call_each(tmp_path, names, redirect=redirect).items():
        assert_sound(done, 0, 1)
        assert done.returncode == 0 or "full" in redirect or name == "check"
    assert (tmp_path / "run" / "plan.json").is_file()


# Each with the encoding of a terminal that is not UTF-8: a command runs once for both.
HOMES: dict[str, tuple[str | None, str]] = {
    "none": (None, "ascii"),
    "read-only": ("/proc/sys", "latin-1"),
    "a file": ("/etc/passwd", "ascii"),
    "absent": ("/no/where", "latin-1"),
}


@needs_root
@pytest.mark.parametrize("home", HOMES)
def test_neither_a_home_of_no_use_nor_a_terminal_without_utf_8_stops_a_command(home: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    path, encoding = HOMES[home]
    assert_all_work(tmp_path, encoding=encoding, stranger=True, HOME=path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the homes' tests do this as another user")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_is_not_utf_8_gets_what_it_can_show(encoding: str, tmp_path: Path) -> None:
    assert_all_work(tmp_path, encoding=encoding)


@needs_root
def test_a_full_home_stops_no_run(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(home)], capture_output=True).returncode:
        pytest.skip("a full disk needs a mount, which may not be made here")
    try:
        with suppress(OSError):
            (home / "fill").write_bytes(b"x" * 10_000)
        for done in call_each(tmp_path, ("plan", "submit", "run", "lint"), HOME=str(home)).values():
            assert_sound(done, 0)
        refused = call(tmp_path, "run", "cluster=cpu", "cluster.node.num_gpus=1", f"run_dir={home / 'run'}")
        assert_sound(refused, 1, 2)
        assert str(home / "run").encode() in refused.stderr
    finally:
        subprocess.run(["umount", str(home)], check=True)


@needs_root
def test_a_folder_that_cannot_be_written_is_said_to_be_just_that() -> None:
    for name in ("submit", "discover", "export"):
        words = [word.replace("{run}", "/proc/sys/run") for word in COMMANDS[name]]
        done = call(Path("/proc/sys"), *words, stranger=True)
        assert_sound(done, 2)
        assert b"/proc/sys" in done.stderr or b"configs" in done.stderr


RUNTIME_FOLDERS = ("stale", "a file", "too long", "another user's", "open to others", "a link")


@pytest.fixture
def runtime(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """XDG_RUNTIME_DIR of a kind."""
    kind, folder = request.param, tmp_path / "runtime"
    own = folder / f"nvlink-launcher-{os.getuid()}"
    if kind == "a file":
        folder.write_text("")
    elif kind == "too long":
        folder = folder / ("x" * 100)
        folder.mkdir(parents=True)
    elif kind != "stale":
        folder.mkdir()
    if kind == "another user's":
        own.mkdir(mode=0o700)
        with suppress(PermissionError):
            os.chown(own, NOBODY, NOBODY)
    elif kind == "open to others":
        own.mkdir()
        own.chmod(0o777)
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        own.symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return kind


@pytest.mark.parametrize("runtime", RUNTIME_FOLDERS, indirect=True)
def test_a_runtime_folder_that_is_not_fit_makes_the_run_start_cold_with_one_line(
    runtime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if runtime == "another user's" and os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    assert not warm.may_listen()
    said = capsys.readouterr().err
    assert said.startswith("launcher: the warm server is not used")
    assert said.count("\n") == 1
    with pytest.raises(LauncherError):
        warm.socket_path()


def test_a_run_with_a_stale_runtime_folder_goes_to_its_end(tmp_path: Path) -> None:
    script = tmp_path / "hello.py"
    script.write_text("print('hello')\n")
    words = ("run", f"script={script}", "cluster=cpu", "cluster.node.num_gpus=1", "run_dir={run}")
    done = call(tmp_path, *words, XDG_RUNTIME_DIR="/nowhere/at/all")
    assert_sound(done, 0)
    assert b"hello" in done.stdout
    assert done.stderr.count(b"the warm server is not used") == 1


def test_a_home_of_nobody_is_no_file(tmp_path: Path) -> None:
    done = call(tmp_path, "run", "script=~no-such-user/train.py", "cluster=cpu")
    assert_sound(done, 2)
    assert b"is not a file" in done.stderr
