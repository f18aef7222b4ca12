"""Kill -9 a whole training job at a random moment, start it again, and compare the end with an undisturbed run's.

Usage: python tests/benchmarks/kill_and_resume.py [--runs 20] [--seed 0]. Every run trains two ranks with asynchronous
checkpoints every 3 steps; all its processes are killed at once, during a step or during a save as drawn from the seed,
then the same command is given again. A run passes when it resumes from the last checkpoint that was committed (or a
later one), and when its final loss equals the undisturbed run's exactly. The last line is one JSON document; the exit
code is 1 if a run fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.worker.manifest import committed_steps

STEPS = 30
COMMAND = [
    *(sys.executable, "-c", "from launcher.cli import main; raise SystemExit(main())", "run", "tracking=none"),
    *("cluster.node.num_gpus=2", "layout.tp=1", "layout.pp=1", "layout.dp=2", "layout.zero_stage=1"),
    *(f"train.steps={STEPS}", "train.checkpoint_every=3", "train.global_batch=4", "model.layers=2", "model.seq_len=64"),
]


@dataclass(frozen=True)
class Outcome:
    """What became of one killed run."""

    wanted: str
    saving: bool  # a checkpoint was being written at that moment
    committed: int  # step of the newest committed checkpoint when it was killed
    resumed_after: int
    final_loss: float
    equal: bool

    @property
    def passed(self) -> bool:
        return self.equal and self.resumed_after >= self.committed


def start(folder: Path) -> subprocess.Popen[str]:
    command = [*COMMAND, f"run_dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    """The JSON document that a run ends with."""
    output, _ = process.communicate(timeout=300)
    if process.returncode:
        raise SystemExit(f"a run that was left alone ended with {process.returncode}:\n{output[-2000:]}")
    document: dict[str, object] = json.loads(output.strip().splitlines()[-1])
    return document


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            child, rest = stat.read_text().split(" (", 1)
        except OSError:
            continue
        parents.setdefault(int(rest.rsplit(")", 1)[1].split()[1]), []).append(int(child))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL every process of the job, by its id."""
    for pid in tree(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def wait_for(process: subprocess.Popen[str], folder: Path, *, kind: str, step: int, extra_s: float) -> None:
    """Return `extra_s` after `step` is done, or after a save about then has begun; or when all is over."""
    metrics, checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
    while process.poll() is None:
        done = metrics.read_text().count("\n") if metrics.is_file() else 0
        if kind == "step" and done >= step:
            break
        if kind == "save" and done >= step - 3 and any(checkpoints.glob(".saving-*")):
            break
        time.sleep(0.001)
    time.sleep(extra_s)


def one_run(folder: Path, *, draw: random.Random, right: float) -> Outcome:
    checkpoints = folder / "checkpoints"
    kind, step = draw.choice(("step", "save")), draw.randint(1, STEPS - 1)
    process = start(folder)
    wait_for(process, folder, kind=kind, step=step, extra_s=draw.uniform(0.0, 0.05 if kind == "step" else 0.005))
    saving = any(checkpoints.glob(".saving-*"))
    committed = max(committed_steps(checkpoints), default=0) if checkpoints.is_dir() else 0
    kill(process)
    document = finish(start(folder))
    losses, resumed = document["losses"], document["resumed_after_step"]
    if not isinstance(losses, dict) or not isinstance(resumed, int):
        raise SystemExit(f"a run ended with another document than expected: {document}")
    # A run that had ended before it was killed has nothing left to train; its metrics hold the last loss.
    final = losses["last"]
    if final is None:
        final = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    return Outcome(f"{kind} {step}", saving, committed, resumed, final, final == right)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    draw = random.Random(parsed.seed)
    with tempfile.TemporaryDirectory() as name:
        undisturbed = finish(start(Path(name) / "undisturbed"))
        losses = undisturbed["losses"]
        if not isinstance(losses, dict):
            raise SystemExit("the undisturbed run told no losses")
        outcomes = []
        for number in range(parsed.runs):
            outcomes.append(one_run(Path(name) / f"run-{number}", draw=draw, right=losses["last"]))
            print(number, asdict(outcomes[-1]), "ok" if outcomes[-1].passed else "FAILED", flush=True)
    passed = sum(outcome.passed for outcome in outcomes)
    during_save = sum(outcome.saving for outcome in outcomes)
    print(json.dumps({"runs": parsed.runs, "passed": passed, "killed_during_a_save": during_save}))
    return 0 if passed == parsed.runs else 1


if __name__ == "__main__":
    raise SystemExit(main())
