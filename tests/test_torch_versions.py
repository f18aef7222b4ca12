"""Where torch is missing or too old for a recipe, one sentence says so before anything starts."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from launcher.agent import fork_server
from launcher.cli import main
from launcher.commands import prepare
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.faststart import library_load
from launcher.layout import Layout
from launcher.planner.record import Plan

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_load, "possible", lambda: False)  # it would end this process


def test_an_old_torch_is_named_before_a_run_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "version", lambda package: "2.6.0+cpu")
    assert main(["run", "train.steps=1"]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the recipe gpt needs torch 2.11 or later, and 2.6.0+cpu is installed: pip install" in message
    assert list(tmp_path.iterdir()) == []


def test_a_missing_torch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "version", missing)
    assert main(["run", "recipe=collectives"]) == 2
    assert "the recipe collectives needs torch 2.11 or later, and none is installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "remedy"), [
    ("torch", r"pip install 'nvlink-launcher\[run\]'$"), ("torch.distributed", "pip install"),
    ("no_such_module", "or take it out of launch.preload"),
])  # fmt: skip
def test_what_cannot_be_preloaded_is_named_with_what_helps(
    module: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(fork_server, "import_module", missing)
    with pytest.raises(InputError, match=remedy):
        fork_server.preload([module])


@pytest.mark.parametrize(("found", "taken"), [("2.10.1", False), ("2.11.0+cu130", True), ("2.14.1", True)])
def test_recipes_take_the_torch_that_they_run_with(monkeypatch: pytest.MonkeyPatch, found: str, taken: bool) -> None:
    settings = load(["recipe=collectives"])
    plan = Plan(settings.job, Layout(tp=2, pp=2, dp=2), {}, (), settings.run_options)
    monkeypatch.setattr(prepare, "version", lambda package: found)
    with nullcontext() if taken else pytest.raises(InputError, match=r"needs torch 2\.11 or later"):
        prepare.check_torch(plan)


def test_collectives_have_an_older_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    dist = pytest.importorskip("torch.distributed")
    import torch

    from launcher.worker.parallel.torch_names import all_gather_single, reduce_scatter_single

    monkeypatch.delattr(dist, "all_gather_single")
    monkeypatch.delattr(dist, "reduce_scatter_single")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        whole, part = torch.zeros(3), torch.zeros(3)
        all_gather_single(whole, torch.arange(3.0), group=dist.group.WORLD)
        reduce_scatter_single(part, whole, group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    assert part.tolist() == [0, 1, 2]


def test_the_extras_ask_for_what_runs_and_another_job_runs_the_oldest_and_the_newest() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [asked] = [re.fullmatch(r"torch~=(\d+)\.(\d+)\.0", word) for word in extras["train"] if word.startswith("torch~")]
    assert asked and tuple(map(int, asked.groups())) >= prepare.OLDEST_TORCH
    assert "torch>=2.6" in extras["run"]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    tried = {tuple(map(int, row["torch"].split(".")))[:2] for row in jobs["scripts"]["strategy"]["matrix"]["include"]}
    assert {(2, 6), prepare.OLDEST_TORCH, tuple(map(int, asked.groups()))} <= tried
