"""Real packages end alike under torchrun and under the launcher: Lightning, the Trainer of transformers, Accelerate."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
HERE = Path(__file__).parent
PYTHON = [sys.executable, "-P", "-m"]


def run_both(folder: Path, script: str) -> dict[str, tuple[str, dict[str, str]]]:
    """By torchrun and by the launcher, side by side: what both said, and the files that their ranks wrote."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    commands = {
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2", str(HERE / script)],
        "launcher": ["launcher.cli", "run", f"script={HERE / script}", f"run_dir={folder}/run",
                     "launch.nproc_per_node=2", "launch.console=all", "launch.warm=never", "--"],
    }  # fmt: skip
    jobs = {}
    for kind, command in commands.items():
        (folder / kind).mkdir()
        jobs[kind] = preloaded.Popen(
            [*PYTHON, *command, "out"], cwd=folder / kind, env=environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    said = {kind: job.communicate(timeout=400) for kind, job in jobs.items()}
    assert {kind: job.returncode for kind, job in jobs.items()} == dict.fromkeys(jobs, 0), said
    return {
        kind: (said[kind][0], {path.name: path.read_text() for path in (folder / kind).glob("trained-*.json")})
        for kind in jobs
    }


def check_learned_the_same(found: dict[str, tuple[str, dict[str, str]]]) -> None:
    assert sorted(found["torchrun"][1]) == ["trained-0.json", "trained-1.json"]
    assert found["launcher"][1] == found["torchrun"][1]


def test_lightning_learns_the_same(tmp_path: Path) -> None:
    check_learned_the_same(run_both(tmp_path, "trains_by_lightning.py"))


def test_the_trainer_of_transformers_learns_the_same_and_accelerates_own_tests_pass(tmp_path: Path) -> None:
    """What those say is compared too: the section of each, and that training yields the same results everywhere."""
    found = run_both(tmp_path, "trains_by_transformers.py")
    check_learned_the_same(found)
    passed = {
        kind: sorted(
            set(re.findall(r"\*\*.+?\*\*|Training yielded .+? batch split|(?:BF16|FP16) training check", said))
        )
        for kind, (said, _) in found.items()
    }
    assert len(passed["torchrun"]) > 15
    assert passed["launcher"] == passed["torchrun"]
