"""The script for a machine with a GPU: sound on CPU ranks, and silent where there is no GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import pytest

RUN = Path(__file__).with_name("run")


def test_without_cuda_it_says_why_it_is_skipped(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, RUN], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)

    assert json.loads(done.stdout) == {"skipped": "torch sees no CUDA device"}
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = spec_from_loader("gpu_run", SourceFileLoader("gpu_run", str(RUN)))
    assert spec and spec.loader
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_run", module)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec.loader.exec_module(module)
    return module


def test_whatever_a_step_raises_the_others_run_and_what_it_found_is_kept(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(bench: object) -> None:
        bench.found["before"] = 1  # type: ignore[attr-defined]
        raise IndexError("no such row")

    def works(bench: object) -> None:
        bench.found["after"] = json.loads((tmp_path / "out.json").read_text())["steps"]["breaks"]  # type: ignore[attr-defined]

    def ends(bench: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "STEPS", (breaks, works, ends, breaks))
    monkeypatch.setattr(sys, "argv", ["run", str(tmp_path / "out.json"), "--cpu"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert script.main() == 1
    finally:
        signal.signal(signal.SIGTERM, before)

    steps = json.loads((tmp_path / "out.json").read_text())["steps"]
    assert (steps["breaks"]["state"], steps["breaks"]["found"]) == ("failed", {"before": 1})
    assert (steps["works"]["state"], steps["ends"]["state"]) == ("done", "ended")
    assert steps["works"]["found"]["after"]["why"] == "IndexError: no such row"  # it was written before


def test_a_gpu_without_an_entry_is_taken_for_the_nearest(script: ModuleType, tmp_path: Path) -> None:
    assert script.nearest("NVIDIA H20", 96 << 30, 9) == "h200_sxm"
    assert script.nearest("NVIDIA A100-SXM4-40GB", 40 << 30, 8) == "a100_sxm_40g"
    assert script.nearest("NVIDIA A30", 24 << 30, 8) == "a30"

    filled = script.completed(script.UNFOUND + "  pcie_gbytes_per_s: ???\n", "h200_sxm")
    (tmp_path / "configs" / "cluster").mkdir(parents=True)
    (tmp_path / "configs" / "cluster" / "site.yaml").write_text(filled)
    command = [sys.executable, "-m", "launcher.cli", "plan", "cluster=site", "model=gpt_tiny"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_command_that_takes_too_long_is_ended_with_its_last_words(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text("import time\nprint('asleep', flush=True)\ntime.sleep(600)\n")
    now = time.monotonic()
    bench = script.Bench(tmp_path, True, now + 60, 6.0, now + 60, cluster="cpu")
    words = ("run", "script=sleeps.py", "cluster=cpu", "cluster.node.num_gpus=1", "tracking=none", "run_dir=asleep")
    with pytest.raises(script.Failed, match="ended after 6 s"):
        bench.launcher(*words)
    assert time.monotonic() - now < 60


@pytest.fixture
def runtime() -> Iterator[str]:
    """A folder short enough for the name of a socket."""
    with TemporaryDirectory(dir="/tmp") as folder:
        yield folder


@pytest.mark.slow
def test_its_steps_run_on_a_cpu_rank(script: ModuleType, tmp_path: Path, runtime: str) -> None:
    """Its seven runs go through a warm server, whose step is the one that is left out.

    On one thread: a second one that waits for work costs as much as one that has some.
    """
    shell = {**os.environ, "XDG_RUNTIME_DIR": runtime, "OMP_NUM_THREADS": "1"}
    own = shell | {
        "PYTHONPATH": script.environment()["PYTHONPATH"]
    }  # as its commands have it: a server serves no other
    warm = [sys.executable, "-m", "launcher.cli", "warm"]
    command = [sys.executable, str(RUN), "out.json", "--cpu", "--only", "looks", "rates", "foreign", "resume", "shapes"]
    subprocess.run([*warm, "recipe=gpt"], cwd=tmp_path, env=own, check=True, timeout=240)
    try:
        done = subprocess.run(
            command, cwd=tmp_path, env=shell, capture_output=True, text=True, timeout=480, check=False
        )
    finally:
        subprocess.run([*warm, "stop"], cwd=tmp_path, env=own, check=True, timeout=240)

    document = json.loads((tmp_path / "out.json").read_text())
    assert {step["state"] for step in document["steps"].values()} == {"done"}, json.dumps(document)[-3000:]
    assert done.returncode == 0
    shapes = document["steps"]["shapes"]["found"]["shapes"]
    assert all(row["measured_step_time_s"] > 0 and row["predicted_memory_bytes"] > 0 for row in shapes)
