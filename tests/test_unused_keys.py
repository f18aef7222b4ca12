"""A key of `launch.*` that nothing would read is refused, or named where the same command is right in another place."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.ssh.watching import HostsWatch

ONE = ["launch.nproc_per_node=1"]
HOSTS = ["launch.hosts=[a,b]", *ONE]
REFUSED = {
    "code": (["run", "launch.code=['*.py']", *ONE], ["launch.code would have no effect, for nothing is copied"]),
    "preload": (["run", "launch.preload=[json]", "launch.start=spawn", *ONE], ["launch.preload would", "forked"]),
    "fork": (["run", "launch.start=fork", "launch.wrapper=nice", *ONE], ["launch.start would", "launch.start=spawn"]),
    "warm": (["run", "launch.warm_idle_s=5", *ONE], ["launch.warm_idle_s would", "`launcher warm` reads it"]),
    "stdin": (["run", "launch=ssh", "launch.stdin_rank=1", *HOSTS], ["launch.stdin_rank would", "this machine"]),
    "torchrun": (
        ["run", "launch=torchrun", "launch.wrapper=nice", "launch.grace_s=9", *HOSTS],
        ["launch.grace_s, launch.warm, launch.wrapper would have no effect, for the torchrun commands"],
    ),
    "no allocation": (["run", "launch=slurm", *ONE], ["launch=slurm runs in an allocation, and this shell has none"]),
    "submit": (["submit", "launch=ssh", *HOSTS], ["launch.place=ssh is not Slurm", "`launcher run`"]),
    "Slurm": (
        [
            *("submit", "cluster=testcluster", "launch.requeue=false", "launch.progress=x", "launch.array_limit=3"),
            *("launch.container.mounts=[a:b]", "launch.login_folder=x", "launch.gpu_type=a", "launch.stdin_rank=0"),
            *("launch.check_bandwidth=false", "launch.bandwidth_threshold=0.5"),
        ],
        [
            *("launch.login_folder would", "launch.progress would", "launch.bandwidth_threshold would"),
            *("launch.array_limit would", "launch.container.mounts would", "launch.gpu_type would"),
            *("launch.stdin_rank would", "7 problems"),
        ],
    ),
    "no check": (
        ["submit", "cluster=testcluster", "launch.preflight=false", "launch.check_bandwidth=true"],
        ["launch.check_bandwidth would have no effect, for nothing is measured with launch.preflight=false"],
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    (tmp_path / "train.py").write_text("")
    return tmp_path


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_have_no_effect_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    words, said = REFUSED[case]
    assert main([words[0], "script=train.py", "run_dir=run", "launch.warm=never", *words[1:]]) == 2
    err = capsys.readouterr().err
    assert [text for text in said if text not in err] == []
    assert not (folder / "run").exists()


READ = {
    "one node": (["run", "launch.shrink_to=1", *ONE], "launch.shrink_to has no effect, for this run has one node"),
    "snapshot": (["submit", "cluster=testcluster", "launch.snapshot=true", "launch.code=['*.py']"], ""),
    "fork": (["run", "launch.start=fork", "launch.preload=[json]", *ONE], ""),
    "ssh": (["run", "launch=ssh", "launch.grace_s=9", "launch.shrink_to=1", "launch.stdin_rank=null", *HOSTS], ""),
    "requeue": (["submit", "cluster=testcluster", "launch.requeue=always", "launch.max_requeues=2"], ""),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_what_is_read_or_read_elsewhere_is_taken(folder: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    words, said = READ[case]
    assert main([words[0], "script=train.py", "dry_run=true", *words[1:]]) == 0
    err = capsys.readouterr().err
    assert said in err if said else "no effect" not in err


def test_the_signals_that_stop_a_run_over_ssh_are_those_of_its_key() -> None:
    watch = HostsWatch([], 0, 1.0, print)
    before = signal.getsignal(signal.SIGUSR2)
    try:
        watch.listen([signal.SIGUSR2])
        os.kill(os.getpid(), signal.SIGUSR2)
        assert watch.signals == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)
