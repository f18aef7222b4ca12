"""The script for a machine with a GPU: sound on CPU ranks, and silent where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run")


def test_without_cuda_it_says_why_it_is_skipped(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, RUN], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)

    assert json.loads(done.stdout) == {"skipped": "torch sees no CUDA device"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_its_steps_run_on_a_cpu_rank(tmp_path: Path) -> None:
    """Its nine runs go through a warm server, whose step is the one that is left out."""
    warm = [sys.executable, "-m", "launcher.cli", "warm"]
    shell = {"cwd": tmp_path, "env": {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}}
    command = [sys.executable, RUN, "out.json", "--cpu", "--only", "looks", "rates", "foreign", "resume", "shapes"]
    subprocess.run(warm, **shell, check=True, timeout=120)
    try:
        done = subprocess.run(command, **shell, capture_output=True, text=True, timeout=480, check=False)
    finally:
        subprocess.run([*warm, "stop"], **shell, check=True, timeout=60)

    document = json.loads((tmp_path / "out.json").read_text())
    assert {step["state"] for step in document["steps"].values()} == {"done"}, json.dumps(document)[-3000:]
    assert done.returncode == 0
    shapes = document["steps"]["shapes"]["found"]
    assert all(row["measured_step_time_s"] > 0 and row["predicted_memory_bytes"] > 0 for row in shapes)
