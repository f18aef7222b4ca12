"""Where torch is missing or too old for a recipe, one sentence says so before anything starts."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.commands import prepare
from launcher.faststart import library_load

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
    assert "the recipe gpt needs torch 2.13 or later, and 2.6.0+cpu is installed: pip install" in message
    assert list(tmp_path.iterdir()) == []


def test_a_missing_torch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "version", missing)
    assert main(["run", "recipe=collectives"]) == 2
    assert "the recipe collectives needs torch 2.13 or later, and none is installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_extra_train_asks_for_the_torch_that_recipes_need() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"torch~={'.'.join(map(str, prepare.RECIPES_TORCH))}.0" in extras["train"]
    assert "torch>=2.6" in extras["run"]
