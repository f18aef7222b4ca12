"""Secrets of the shell are in no file, argument or page of a run: plan, report, wandb, ledger, sbatch script, argv."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.config.compose import load
from launcher.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cr3tvalue0123456789abcdef0123456789"
SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "DB_PASS", "GITHUB_PAT", "LAUNCHER_SECRET")
GPT = ("cluster=cpu", "cluster.node.num_gpus=1", "model=gpt_tiny", "train.steps=8")
TRACKED = ("tracking=wandb", "tracking.mode=offline")


def shell(folder: Path) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **dict.fromkeys(SECRETS, SECRET), **own}


def launcher(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "launcher.cli", *words]
    return subprocess.Popen(argv, env=shell(folder), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def arguments_of_all_processes() -> bytes:
    """Every argv that this user may see, as `ps` shows them to all."""
    found = b""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += file.read_bytes()
        except OSError:
            continue
    return found


def holding_the_secret(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_run_with_its_report_and_tracking_holds_no_secret(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    started = launcher(tmp_path, "run", *GPT, *TRACKED, f"run_dir={run}")
    seen = b""
    while started.poll() is None:
        seen += arguments_of_all_processes()
        time.sleep(0.2)
    said = started.stdout.read() if started.stdout else b""
    assert started.returncode == 0, said.decode()
    writer = [sys.executable, "-m", "launcher.worker.metrics.wandb_process", str(run)]  # as `launcher sync` starts it
    wandb = subprocess.Popen(
        writer,
        env=shell(tmp_path),
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said += wandb.communicate(b"end\n", timeout=240)[0]
    assert wandb.returncode == 0, said.decode()
    for words in (("report", str(run)), ("status", str(run)), ("logs", str(run))):
        said += launcher(tmp_path, *words).communicate(timeout=120)[0]
    assert b"launcher.cli" in seen
    assert SECRET.encode() not in seen + said
    assert list((run / "wandb").rglob("*.wandb"))
    assert holding_the_secret(tmp_path) == []


@pytest.mark.slow
def test_a_submission_holds_no_secret_although_the_job_may_have_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = ("cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64")
    words = ("submit", *job, "dry_run=true", f"run_dir={run}", "launch.secrets=[HF_TOKEN]")
    said = launcher(tmp_path, *words).communicate(timeout=120)[0]
    assert b"-u DB_PASS" in said
    assert b"-u HF_TOKEN" not in said
    assert SECRET.encode() not in said
    assert holding_the_secret(tmp_path) == []


@pytest.mark.parametrize("key", ["model.name", "recipe.note", "launch.container.image", "tracking.project"])
def test_nothing_but_paths_is_taken_from_the_environment(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    with pytest.raises(InputError) as caught:
        load(["launch=slurm", f"{key}='${{oc.env:TOKEN}}'"])
    assert SECRET not in str(caught.value)


def test_a_path_and_a_default_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.delenv("NOT_SET", raising=False)
    words = ["train.data='${oc.env:SCRATCH}/tokens'", "model.name='${oc.env:NOT_SET,plain}'"]
    config = load(words).config
    assert config["train"]["data"] == f"{tmp_path}/tokens"
    assert config["model"]["name"] == "plain"
