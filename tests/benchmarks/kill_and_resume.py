"""Kill -9 a whole training job at a random moment, start it again, and compare the end with an undisturbed run's.

Usage: python tests/benchmarks/kill_and_resume.py [--runs 20] [--seed 0]. Every run trains two ranks with asynchronous
checkpoints every 3 steps; all its processes are killed at once, during a step, during a save or between two steps in
turn, at a moment drawn from the seed; then the same command is given again. A run passes when it goes on from the last
checkpoint that was committed when it died, and when its metrics then hold every step once, each with exactly the loss
of the undisturbed run. An interrupted save is recognised by the files that it left. The last line is one JSON document;
the exit code is 1 if a run fails.
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

from launcher.run.checkpoints import committed_steps, leftovers
from launcher.run.folder import RunFolder
from launcher.run.metrics import read_steps
from launcher.worker.data.batches import standard_library_tokens, write_token_file

STEPS = 24
DATA = "stdlib.tokens"  # made once, not by every run
KINDS = ("step", "save", "between")
COMMAND = [
    *(sys.executable, "-c", "from launcher.cli import main; raise SystemExit(main())", "run", "tracking=none"),
    *("cluster.node.num_gpus=2", "layout.tp=1", "layout.pp=1", "layout.dp=2", "layout.zero_stage=1"),
    *(f"train.steps={STEPS}", "train.checkpoint_every=3", "train.global_batch=4", "model.layers=2", "model.seq_len=64"),
]


@dataclass(frozen=True)
class Outcome:
    """What became of one killed run."""

    wanted: str
    after_step: int  # steps that it had reported before it died
    in_a_save: bool  # it left a checkpoint half written
    committed: int  # step of the newest committed checkpoint when it died
    resumed_after: int
    final_loss: float
    equal: bool  # every step's loss, the last one's included

    @property
    def passed(self) -> bool:
        return self.equal and self.resumed_after == self.committed


def start(folder: Path) -> subprocess.Popen[str]:
    command = [*COMMAND, f"run_dir={folder}", f"train.data={folder.parent / DATA}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    """The result of a run."""
    output, _ = process.communicate(timeout=300)
    if process.returncode:
        raise SystemExit(f"a run that was left alone ended with {process.returncode}:\n{output[-2000:]}")
    document: dict[str, object] = json.loads(Path(json.loads(output.strip().splitlines()[-1])["result"]).read_text())
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


def reported_losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every finished step."""
    return [(line.step, line.loss or 0.0) for line in read_steps(RunFolder(folder).metrics)]


def half_written(folder: Path) -> bool:
    return bool(leftovers(RunFolder(folder).checkpoints))


def wait_for(process: subprocess.Popen[str], folder: Path, *, kind: str, step: int, part: float) -> None:
    """Return when `step` is done (`kind` between), that `part` of a step later (step), or when a save after about that
    step has begun and a `part` of 5 ms has passed (save); or when all is over.
    """
    metrics, reported_at = RunFolder(folder).metrics, []
    while process.poll() is None:
        done = metrics.read_text().count("\n") if metrics.is_file() else 0
        reported_at += [time.monotonic()] * (done - len(reported_at))
        if kind == "save" and done >= step - 3 and half_written(folder):
            time.sleep(0.005 * part)
            return
        if kind != "save" and done >= step:
            break
        time.sleep(0.001)
    if kind == "step" and len(reported_at) > 1:
        time.sleep(part * (reported_at[-1] - reported_at[0]) / (len(reported_at) - 1))


def one_run(folder: Path, *, kind: str, draw: random.Random, right: list[tuple[int, float]]) -> Outcome:
    checkpoints = RunFolder(folder).checkpoints
    step, part = draw.randint(1, STEPS - 1), draw.random()
    process = start(folder)
    wait_for(process, folder, kind=kind, step=step, part=part)
    kill(process)
    after, in_a_save = len(reported_losses(folder)), half_written(folder)
    committed = max(committed_steps(checkpoints), default=0) if checkpoints.is_dir() else 0
    resumed = finish(start(folder))["resumed_after_step"]
    if not isinstance(resumed, int):
        raise SystemExit(f"a run ended with another document than expected: resumed_after_step={resumed!r}")
    found = reported_losses(folder)
    return Outcome(f"{kind} {step}", after, in_a_save, committed, resumed, found[-1][1], found == right)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    draw = random.Random(parsed.seed)
    with tempfile.TemporaryDirectory() as name:
        write_token_file(Path(name) / DATA, standard_library_tokens(), vocab=256)
        finish(start(Path(name) / "undisturbed"))
        right = reported_losses(Path(name) / "undisturbed")
        outcomes = []
        for number in range(parsed.runs):
            kind = KINDS[number % len(KINDS)]
            outcomes.append(one_run(Path(name) / f"run-{number}", kind=kind, draw=draw, right=right))
            print(number, asdict(outcomes[-1]), "ok" if outcomes[-1].passed else "FAILED", flush=True)
    passed = sum(outcome.passed for outcome in outcomes)
    in_a_save = sum(outcome.in_a_save for outcome in outcomes)
    print(json.dumps({"runs": parsed.runs, "passed": passed, "killed_in_a_save": in_a_save, "loss": right[-1][1]}))
    return 0 if passed == parsed.runs else 1


if __name__ == "__main__":
    raise SystemExit(main())
