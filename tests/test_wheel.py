"""A plain install: the wheel carries its data, adds no stray modules, and plans from an empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PIP = (sys.executable, "-m", "pip")  # of this environment: a pip for each new one takes two seconds more
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def run(*argv: str, cwd: Path) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT), cwd=ROOT)
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_configs_recipes_and_slurm_as_package_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "launcher/_data/configs/cluster/dgx_a100_80g.yaml" in names
    assert "launcher/_data/recipes/gpt.py" in names
    assert "launcher/_data/slurm/train.sbatch" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"launcher"}


def test_a_fresh_install_plans_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home)
    python = str(home / "bin" / "python")
    run(*PIP, "--python", python, "install", "--quiet", "--disable-pip-version-check", str(wheel), cwd=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    overrides = ["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64", "output=json"]
    document = json.loads(run(str(home / "bin" / "launcher"), "plan", *overrides, cwd=empty))
    assert document["plans"][0]["layout"]["tp"] <= 8
    absent = (
        "import importlib.util as u; print([n for n in ('configs', 'recipes', 'slurm', 'torch') if u.find_spec(n)])"
    )
    assert run(python, "-c", absent, cwd=empty).strip() == "[]"
    assert list(empty.iterdir()) == []


def test_the_wheel_says_that_it_is_typed(wheel: Path) -> None:
    assert "launcher/py.typed" in zipfile.ZipFile(wheel).namelist()
