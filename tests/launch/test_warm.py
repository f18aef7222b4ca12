"""The warm server: a run through it, and what makes it refuse."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from jobs import Job, gone

from launcher import process
from launcher.commands.warm import SERVER
from launcher.commands.warm_server import work
from launcher.faststart import warm
from launcher.faststart.inherited import Inherited

pytestmark = pytest.mark.slow


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """XDG_RUNTIME_DIR of this test's own, short enough for the name of a socket wherever pytest has its folders."""
    with TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def server(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server of this test's own, with one extra module imported."""
    (tmp_path / "extra_module.py").write_text("value = 1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield warm.start(SERVER, ["extra_module"], idle_s=300)
    warm.stop()


def test_a_run_goes_through_the_server_and_the_server_outlives_it(
    server: int, start: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = warm.socket_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    code, out, err = start("fail=1", ranks=2, cli=True).finish()
    assert code == 1
    assert "rank 1 failed first" in err
    assert "not used" not in err

    monkeypatch.setenv("MARK", "of this shell")
    code, out, err = start(ranks=4, cli=True, preload="[extra_module]").finish()
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["sum"] == 6.0
    assert warm.running() == server

    job = start("loop", "child", ranks=2, cli=True)
    job.wait_until_looping(2)
    members = process.descendants(server)
    assert len(members) == 6  # agent, fork server, two ranks and a child of each
    job.process.send_signal(signal.SIGINT)
    assert job.finish()[0] == 1
    assert gone(members)

    code, out, err = start(ranks=1, cli=True, console="nowhere").finish()
    assert (code, out) == (2, "")
    assert "launch.console = 'nowhere' is not one of" in err

    job = start("loop", ranks=2, cli=True)
    job.wait_until_looping(2)
    members = process.descendants(server)
    job.process.kill()
    job.process.wait()
    assert gone(members)
    assert warm.running() == server


def test_a_changed_environment_or_file_makes_a_cold_start_that_is_announced(
    server: int, start: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, _, err = start(ranks=1, cli=True, warm="never").finish()
    assert code == 0
    assert "warm server" not in err

    with monkeypatch.context() as changed:
        changed.setenv("TORCH_MARK", "1")
        code, _, err = start(ranks=1, cli=True).finish()
    assert code == 0
    assert "TORCH_MARK changed since it started" in err

    (tmp_path / "extra_module.py").write_text("value = 2  # changed\n")
    code, out, err = start(ranks=1, cli=True).finish()
    assert code == 0
    assert "extra_module.py changed since it was imported" in err
    assert json.loads(out.splitlines()[-1])["sum"] == 0.0
    assert gone([server])


def test_a_run_takes_on_the_limits_of_its_shell_or_goes_cold() -> None:
    here = Inherited.of_this_process()
    assert Inherited.from_dict(json.loads(json.dumps(here.to_dict()))) == here
    code = (
        "import dataclasses, os, sys\n"
        "from launcher.faststart.inherited import Inherited\n"
        "here = Inherited.of_this_process()\n"
        "limits = {**here.limits, 'NOFILE': (99, here.limits['NOFILE'][1]), 'CORE': (0, 0)}\n"
        "wanted = dataclasses.replace(here, umask=0o077, niceness=here.niceness + 1, limits=limits)\n"
        "wanted = dataclasses.replace(wanted, cores=here.cores[:1])\n"
        "wanted.take_on()\n"
        "assert Inherited.of_this_process() == wanted\n"
        "try:\n"
        "    dataclasses.replace(wanted, cores=(4095,)).take_on()\n"
        "except OSError:\n"
        "    print('may not')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "may not\n"


def test_a_run_whose_configuration_wants_no_server_goes_cold(capfd: pytest.CaptureFixture[str]) -> None:
    assert work(warm.WarmRun.of_this_process(["launch.warm=never"], [])) == warm.GO_COLD
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("runtime")
def test_an_idle_server_ends_by_itself() -> None:
    pid = warm.start(SERVER, [], idle_s=0.5)
    assert gone([pid])
    assert warm.running() is None


def test_a_folder_that_others_may_enter_is_not_trusted(runtime: Path) -> None:
    (runtime / f"nvlink-launcher-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(warm.LauncherError, match="private folder"):
        warm.socket_path()


def test_the_command_starts_looks_and_stops(runtime: Path) -> None:
    def command(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "launcher.cli", "warm", *words],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return done.returncode, done.stderr

    assert command("status") == (1, "launcher: no warm server is running\n")
    code, said = command("recipe.preload=[]")
    assert code == 0, said
    pid = warm.running()
    assert pid is not None
    assert f"pid {pid}" in said
    assert command("status")[0] == 0
    assert command("stop") == (0, f"launcher: stopped the warm server (pid {pid})\n")
    assert command("sotp")[0] == 2
    assert gone([pid])


def test_what_no_run_sends_leaves_the_server_alive(server: int) -> None:
    for data in (b"{}", b"[" * 60_000, b"\xff", b'{"overrides": 1}'):
        with socket.socket(socket.AF_UNIX) as odd:
            odd.connect(str(warm.socket_path()))
            socket.send_fds(odd, [struct.pack("=I", len(data))], [0, 1, 2])
            odd.sendall(data)
            odd.settimeout(30)
            with suppress(ConnectionError):
                assert odd.recv(100) == b""
    assert warm.running() == server
