"""A user's recipe and cluster work without a change of ours: from a template, and from another installed package."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import preloaded
import pytest

from launcher.cli import main
from launcher.config import folders
from launcher.config.compose import load
from launcher.planner.options import OwnRecipeOptions
from launcher.planner.record import read_plan
from launcher.run.folder import RunFolder

SMALL = ["cluster.node.num_gpus=2", "layout.tp=1", "layout.pp=1", "tracking=none"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_recipe_from_the_template_runs_with_its_own_settings(home: Path) -> None:
    assert main(["new", "recipe", "probe"]) == 0
    words = ["run", "recipe=probe", "recipe.settings.rounds=2", "run_dir=run", *SMALL]
    done = preloaded.run([sys.executable, "-m", "launcher.cli", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["recipe"], found["ranks"]) == ("probe", 2)
    options = read_plan(RunFolder(home / "run").plan).options.recipe
    assert isinstance(options, OwnRecipeOptions)
    assert options.settings == {"elements": 262144, "rounds": 2}
    assert options.file == str(home / "recipes" / "probe.py")


def test_a_cluster_from_the_template_is_planned_for(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "cluster", "site"]) == 0
    assert capsys.readouterr().out.split() == ["configs/cluster/site.yaml"]
    assert main(["plan", "cluster=site", "model=gpt3_1b3", "train.global_batch=64", "top=1"]) == 0
    assert "on site: 16 GPUs" in capsys.readouterr().out


def test_what_is_there_is_not_replaced(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "recipe", "probe"]) == 0
    (home / "recipes" / "probe.py").write_text("mine")
    assert main(["new", "recipe", "probe"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (home / "recipes" / "probe.py").read_text() == "mine"


def test_a_recipe_that_is_nowhere_says_where_to_write_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe.name=prob"]) == 2
    assert "write recipes/prob.py" in capsys.readouterr().err


def test_another_package_brings_recipes_and_clusters(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip installs one: a package and its dist-info with entry points."""
    package, info = home / "site" / "site_plugin", home / "site" / "site_plugin-1.dist-info"
    for name in ("cluster", "recipe"):
        (package / "configs" / name).mkdir(parents=True)
    info.mkdir()
    for file in (package / "__init__.py", package / "configs" / "__init__.py", package / "probe.py"):
        file.write_text("raise SystemExit('planning runs no recipe')\n" if file.stem == "probe" else "")
    (package / "configs" / "cluster" / "theirs.yaml").write_text("defaults: [dgx_a100_80g, _self_]\nname: theirs\n")
    (package / "configs" / "recipe" / "their_probe.yaml").write_text("name: their_probe\nsettings: {rounds: 3}\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: site-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[nvlink_launcher.clusters]\nsite = site_plugin.configs\n\n"
        "[nvlink_launcher.recipes]\ntheir_probe = site_plugin.probe\n"
    )
    monkeypatch.syspath_prepend(str(home / "site"))
    folders.plugin_folders.cache_clear()
    try:
        settings = load(["cluster=theirs", "recipe=their_probe"])
    finally:
        folders.plugin_folders.cache_clear()
        folders._plugins.set(())
    assert settings.job.cluster.name == "theirs"
    recipe = settings.options.recipe
    assert isinstance(recipe, OwnRecipeOptions)
    assert (recipe.file, recipe.settings) == (str(package / "probe.py"), {"rounds": 3})
