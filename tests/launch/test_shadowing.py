"""A launcher.py of the user's in the folder where a job begins: none of our own starts imports it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.slurm.guard import guard_argv
from launcher.slurm.submit import batch_script

ROOT = Path(__file__).resolve().parents[2]
MINE = "the user's module was imported"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "launcher.py").write_text(f"raise SystemExit({MINE!r})\n")
    return tmp_path


def test_the_batch_script_starts_the_driver(home: Path) -> None:
    done = subprocess.run(
        ["bash", str(batch_script()), "run", sys.executable], cwd=home, capture_output=True, text=True, timeout=120
    )
    assert MINE not in done.stderr
    assert "launcher: " in done.stderr  # it misses Slurm's variables


def test_the_driver_starts_the_guard(home: Path) -> None:
    argv = guard_argv("1", "n1", on="n2")
    own = argv[argv.index(sys.executable) :]
    done = subprocess.run([*own[:-2]], cwd=home, capture_output=True, text=True, timeout=120)  # without its arguments
    assert MINE not in done.stderr
    assert "launcher/slurm/guard.py" in done.stderr


def test_every_start_of_a_module_of_ours_is_safe() -> None:
    unsafe = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*(ROOT / "launcher").rglob("*.py"), *(ROOT / "slurm").rglob("*.sbatch")]
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(r'"-m", ("launcher\.|module|program|step\.module)|python" -m launcher', line)
        and '"-P"' not in line
        and " -P " not in line
    ]
    assert unsafe == []
