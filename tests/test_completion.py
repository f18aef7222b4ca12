"""Completion offers commands, keys, values, runs and formats, and its scripts run in real shells."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.commands.completion import BASH, FISH, SCRIPTS, ZSH, candidates

COLLECTIVES, SLURM = ["run", "recipe=collectives"], ["run", "launch=slurm"]


@pytest.mark.parametrize(
    ("before", "current", "offered"),
    [
        ([], "pl", "plan"),
        (["plan"], "cluster=dgx_a100_8", "cluster=dgx_a100_80g"),
        (["plan"], "cluster=cpu,dgx_a100_8", "cluster=cpu,dgx_a100_80g"),
        (["plan"], "layout.virt", "layout.virtual_stages="),
        (["plan"], "train.engine=d", "train.engine=deepspeed"),
        (["plan"], "layout.sequence_parallel=t", "layout.sequence_parallel=true"),
        (["plan"], "output=", "output=json"),
        (["keys"], "output=m", "output=markdown"),
        (["run"], "recip", "recipe="),
        (COLLECTIVES, "recipe.siz", "recipe.sizes="),
        (SLURM, "launch.parti", "launch.partition="),
        (["submit"], "launch.parti", "launch.partition="),
        (["export"], "to=mega", "to=megatron"),
        (["discover"], "dry", "dry_run="),
        (["warm"], "st", "status"),
    ],
)
def test_the_word_that_fits_is_offered(before: list[str], current: str, offered: str) -> None:
    assert offered in candidates(before, current)


@pytest.mark.parametrize(
    ("before", "current"),
    [
        (["run"], "recipe.max"),  # gpt has none
        (["run"], "launch.parti"),  # a local run has none
        (["status"], "model.hid"),
        (["plan", "--"], "cluster="),
    ],
)
def test_what_the_words_so_far_do_not_have_is_not_offered(before: list[str], current: str) -> None:
    assert candidates(before, current) == []


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number, name in enumerate(("gpt-1", "gpt-2")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "plan.json").write_text(json.dumps({}))
        os.utime(tmp_path / "runs" / name, (number, number))
    (tmp_path / "runs" / "no_run").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_are_offered_newest_first(home: Path) -> None:
    assert candidates(["status"], "runs/g") == ["runs/gpt-2", "runs/gpt-1"]
    assert candidates(["compare", "runs/gpt-2"], "runs/") == ["runs/gpt-1"]
    assert candidates(["plan"], "plan=runs/gpt-1") == ["plan=runs/gpt-1"]


def test_the_users_own_files_are_offered(home: Path) -> None:
    (home / "site" / "cluster").mkdir(parents=True)
    (home / "site" / "cluster" / "mine.yaml").write_text("defaults: [cpu, _self_]\n")
    assert candidates(["plan", "config_dir=site"], "cluster=mi") == ["cluster=mine"]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_command_prints_each_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == SCRIPTS[shell]


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"no {shell} on this machine")


@pytest.fixture
def on_path(home: Path) -> dict[str, str]:
    """An environment with `launcher` on its PATH, as an install has it."""
    (home / "bin").mkdir()
    script = home / "bin" / "launcher"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m launcher.cli "$@"\n')
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{home / 'bin'}:{os.environ['PATH']}", "HOME": str(home), "TERM": "dumb"}


@needs("bash")
def test_bash_completes_an_entry_after_the_equals_sign(home: Path, on_path: dict[str, str]) -> None:
    typed = 'COMP_LINE="launcher plan cluster=dgx_a100"; COMP_POINT=${#COMP_LINE}'
    script = f'{BASH}\n{typed}; _launcher; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=240, cwd=home, env=on_path)
    assert done.stdout.split() == ["dgx_a100_40g", "dgx_a100_80g"], done.stderr


@needs("fish")
def test_fish_completes_values_keys_and_runs(home: Path, on_path: dict[str, str]) -> None:
    lines = ["launcher plan cluster=dgx_a100", "launcher status runs/", "launcher run recipe=gemm recipe.sq"]
    script = FISH + "".join(f"complete -C '{line}'\n" for line in lines)
    done = subprocess.run(
        ["fish", "--no-config", "-c", script], capture_output=True, text=True, timeout=240, cwd=home, env=on_path
    )
    found = [line.split("\t")[0] for line in done.stdout.splitlines()]
    wanted = ["cluster=dgx_a100_40g", "cluster=dgx_a100_80g", "runs/gpt-1", "runs/gpt-2", "recipe.squares="]
    assert [word for word in wanted if word not in found] == [], done.stdout + done.stderr


@needs("zsh")
def test_zsh_completes_an_entry_at_a_tab(home: Path, on_path: dict[str, str]) -> None:
    (home / ".zshrc").write_text(f"autoload -Uz compinit; compinit -u -d {home}/dump\n{ZSH}\nPS1='ready> '\n")
    master, slave = pty.openpty()
    with subprocess.Popen(
        ["zsh", "-i"], stdin=slave, stdout=slave, stderr=slave, cwd=home, env=on_path, start_new_session=True
    ) as shell:
        os.close(slave)
        try:
            until(master, "ready> ")
            os.write(master, b"echo launched; launcher plan cluster=dgx_a100_80\t")
            until(master, "cluster=dgx_a100_80g")
        finally:
            shell.kill()
            os.close(master)


def until(fd: int, wanted: str, *, within_s: float = 240) -> str:
    """What a terminal shows, up to a text."""
    shown, end = "", time.monotonic() + within_s
    while wanted not in shown:
        ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"{wanted!r} did not come: {shown!r}"
        shown += os.read(fd, 4096).decode(errors="replace")
    return shown
