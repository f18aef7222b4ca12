"""Flags that Hydra users know show and place the configuration; the others say in a line why they are not here."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from launcher.cli import main
from launcher.config.compose import load


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "cluster").mkdir(parents=True)
    (folder / "model").mkdir()
    text = "defaults: [dgx_a100_80g, _self_]\nname: mine\nnum_nodes: 3\n"
    (folder / "cluster" / "mine.yaml").write_text(text)
    (folder / "model" / "wide.yaml").write_text("defaults: [gpt_tiny, _self_]\nname: wide\nffn_hidden: ${.hidden}\n")
    return folder


def out(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("what", ["job", "all"])
def test_cfg_prints_the_configuration_of_the_command(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "submit", "--cfg", what, "train.steps=7")
    config = yaml.safe_load(text)
    assert (config["launch"]["place"], config["train"]["steps"]) == ("slurm", 7)


def test_cfg_shows_interpolations_as_written_and_resolved_on_request(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("plan", "model=wide", "--config-dir", str(site), "-c", "job", "-p", "model")
    as_written, with_values = out(capsys, *words), out(capsys, *words, "--resolve")
    assert as_written.startswith("# @package model\n")
    assert yaml.safe_load(as_written)["ffn_hidden"] == "${.hidden}"
    assert yaml.safe_load(with_values)["ffn_hidden"] == 128


def test_a_package_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--cfg", "job", "--package", "cluster.nod"]) == 2
    assert "cluster.nod is no part of the configuration" in capsys.readouterr().err


def test_info_shows_folders_and_files_in_their_order(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "plan", "cluster=mine", f"config_dir={site}", "--info")
    assert text.splitlines()[1].strip() == str(site)
    assert f"cluster/mine  ({site}/cluster/mine.yaml)" in text
    only = out(capsys, "plan", "--info", "searchpath")
    assert "cluster/" not in only


def test_a_folder_of_files_comes_before_all_others(site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "work" / "configs" / "cluster"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("defaults: [dgx_a100_80g, _self_]\nname: other\n")
    monkeypatch.chdir(tmp_path / "work")
    assert load(["cluster=mine"]).job.cluster.name == "other"
    assert load(["cluster=mine", f"config_dir={site}"]).job.cluster.name == "mine"
    assert load(["cluster=mine"]).job.cluster.name == "other"  # and it is gone again


def test_a_folder_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config-dir", str(tmp_path / "nowhere")]) == 2
    assert f"config_dir={tmp_path / 'nowhere'} is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "--config-name", "x"], "choose files by group"),
        (["plan", "--config-path=x"], "choose files by group"),
        (["plan", "--hydra-help"], "launcher keys"),
        (["--hydra-help"], "launcher keys"),
        (["plan", "--cfg", "hydra"], "no keys of its own"),
        (["run", "hydra.run.dir=x"], "run_dir="),
        (["plan", "+hydra.job.name=x"], "no keys of its own"),
        (["submit", "hydra/launcher=submitit_slurm"], "no keys of its own"),
        (["status", "--cfg", "job", "runs/x"], "composes no configuration"),
        (["plan", "--cfg", "job", 'model.name="a${b"'], "has a ${…} that cannot be read"),
        (["plan", "--cfg", "job", "--resolve", 'model.name="a${b"'], "cannot be resolved"),
    ],
)
def test_what_hydra_has_and_we_have_not_is_said_in_a_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
