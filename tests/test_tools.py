"""The tools that keep the code in shape run with the tests: one command shows everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # type checks take a minute of CPU: not at the end, when other workers have nothing left
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "arguments",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["bandit", "-q", "-c", "pyproject.toml", "-r", "launcher", "recipes"],
    ],
    ids=["ruff-check", "ruff-format", "mypy-strict", "bandit"],
)
def test_the_code_passes(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
