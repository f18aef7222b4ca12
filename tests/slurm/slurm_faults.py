"""Faults that come through Slurm, at moments drawn by a seed: each job must end whole, without a step lost.

    cd tests/slurm; python slurm_faults.py [--faults 20] [--seed 0] [--phase PHASE]

It starts the test cluster, submits the gpt recipe over two nodes, strikes it once at its start, in its training, in a
save or at its end, and waits for the job's end on its own; a cancelled one is submitted again. Recovered: the job is
COMPLETED, and each step has, once, the loss of a run on this machine that was left alone. Steps lost: between the
newest committed checkpoint at the fault and the step that the next start went on from. Last line: the summary as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path += [str(TESTS), str(TESTS / "faults"), str(TESTS / "launch")]

from seeded import MARK, Fault, Marked, Summary, drawn, resumed_after, steps_done  # noqa: E402
from slurm_lab import NEWER, SIDE, Slurm, one_cluster  # noqa: E402

from launcher import process  # noqa: E402
from launcher.files import read_lines  # noqa: E402
from launcher.planner import read_plan  # noqa: E402
from launcher.run.checkpoints import newest_good  # noqa: E402
from launcher.run.folder import RunFolder  # noqa: E402

STEPS, EVERY = 16, 4
SHAPE = ("cluster.num_nodes=2", "cluster.node.num_gpus=1", "cluster.node.domain_size=1")
TRAINING = (
    *("layout.tp=1", "layout.pp=1", "layout.dp=2", f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}"),
    *("model.layers=2", "model.seq_len=64", "train.global_batch=4", "tracking=none"),
)
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"})
END_S, MOMENT_S, POLL_S = 420.0, 200.0, 0.1
Losses = list[tuple[int, float]]


def losses(folder: RunFolder) -> Losses:
    lines = read_lines(folder.metrics) if folder.metrics.exists() else []
    return [(line["step"], line["loss"]) for line in lines]


def same(found: Losses, expected: Losses) -> bool:
    """The same steps, once each, with losses that differ by the order of sums at most."""
    return [step for step, _ in found] == [step for step, _ in expected] and all(
        math.isclose(loss, other, rel_tol=1e-5) for (_, loss), (_, other) in zip(found, expected, strict=True)
    )


@dataclass
class BatchJob:
    """One submission, which Slurm may start several times."""

    slurm: Slurm
    run: Path
    chance: random.Random
    job_id: str = ""
    marked: Marked = field(default_factory=Marked)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.run)

    def submit(self) -> None:
        words = (f"launch.exclude={SIDE},{NEWER}", "launch.max_restarts=2", "launch.max_requeues=3")
        self.job_id = self.slurm.submit(self.run, *SHAPE, *TRAINING, *words, **{MARK: self.marked.mark})

    def hosts(self) -> list[str]:
        with suppress(Exception):  # not placed yet
            return list(read_plan(self.folder.present_plan).hosts)
        return []

    def state(self) -> str:
        """Slurm's state of the job; nothing while slurmctld does not answer."""
        return self.slurm.run("squeue", "-h", "-t", "all", "-j", self.job_id, "-o", "%T", check=False).stdout.strip()

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline or self.state() in ENDED:
                return False
            time.sleep(POLL_S)
        return True

    def reach(self, phase: str) -> bool:
        """Wait for a moment of the phase."""
        folder, last = self.folder, self.chance.randrange(2, STEPS - 2)
        conditions: dict[str, Callable[[], bool]] = {
            "start": lambda: self.state() == "RUNNING",
            "training": lambda: steps_done(folder) >= last,
            "save": lambda: folder.checkpoints.exists() and any(folder.checkpoints.glob(".saving-*")),
            "shutdown": lambda: steps_done(folder) >= STEPS,
        }
        reached = self.wait_for(conditions[phase], timeout_s=MOMENT_S)
        if phase == "start":
            time.sleep(self.chance.uniform(0.0, 8.0))
        return reached

    def end(self) -> str:
        """The state in which the job ends; a job that was cancelled is submitted again, once."""
        deadline = time.monotonic() + END_S
        again = False
        while (state := self.state()) not in {"COMPLETED", "FAILED"} and time.monotonic() < deadline:
            if state in ENDED and not again:
                again = True
                self.submit()
            time.sleep(POLL_S)
        return state


def scancel(job: BatchJob) -> None:
    job.slurm.run("scancel", job.job_id, check=False)


def launcher_cancel(job: BatchJob) -> None:
    job.slurm.launcher("cancel", str(job.run), check=False)


def requeue(job: BatchJob) -> None:
    job.slurm.run("scontrol", "requeue", job.job_id, check=False)


def stop_signal(job: BatchJob) -> None:
    """As Slurm sends it before the time limit."""
    job.slurm.run("scancel", "--batch", "--signal=USR1", job.job_id, check=False)


def preempt(job: BatchJob) -> None:
    on = ",".join(job.hosts()) or "node1,node2"
    words = ["-p", "high", "-w", on, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2"]
    job.slurm.run("sbatch", *words, check=False)


def kill_node(job: BatchJob) -> None:
    """A power failure of a node that the batch script is not on; it comes back later."""
    others = [host for host in job.hosts() if host != "node1"]
    victim = job.chance.choice(others or ["node2"])
    job.slurm.testcluster("kill-node", victim)
    down = ("scontrol", "update", f"nodename={victim}", "state=down", "reason=power")
    time.sleep(job.chance.uniform(0.0, 4.0))
    job.slurm.run(*down, check=False)
    job.slurm.testcluster("start-node", victim)
    time.sleep(1)
    job.slurm.run("scontrol", "update", f"nodename={victim}", "state=resume", check=False)


def stop_slurmd(job: BatchJob) -> None:
    """slurmd does not answer, briefly or for longer than Slurm waits."""
    victim = job.chance.choice(job.hosts() or ["node2"])
    parent = int((job.slurm.folder / "run" / f"node-{victim}.pid").read_text())
    daemons = [pid for pid in process.descendants(parent) if _name(pid) == "slurmd"]
    process.signal_all(daemons, signal.SIGSTOP)
    time.sleep(job.chance.choice((1.0, 9.0)))
    process.signal_all(daemons, signal.SIGCONT)


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def kill_rank(job: BatchJob) -> None:
    ranks = [pid for pid in job.marked.alive() if _is_rank(pid)]
    process.signal_all(job.chance.sample(ranks, min(1, len(ranks))), signal.SIGKILL)


def _is_rank(pid: int) -> bool:
    with suppress(OSError):
        return b"gpt.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def restart_slurmctld(job: BatchJob) -> None:
    """The controller ends and comes back: jobs go on. Killed, Slurm itself may forget a job that it has just taken."""
    controller = int((job.slurm.folder / "run" / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGTERM)
    while process.state(controller) not in (None, "Z"):
        time.sleep(POLL_S)
    time.sleep(job.chance.uniform(0.0, 3.0))
    conf = job.slurm.folder / "etc" / "slurm.conf"
    subprocess.run(["slurmctld", "-f", str(conf)], env=job.slurm.environment, check=True, capture_output=True)


KINDS: dict[str, tuple[str, Callable[[BatchJob], None]]] = {
    f"{what} in the {phase}": (phase, blow)
    for what, blow, phases in (
        ("scancel", scancel, ("start", "training", "save", "shutdown")),
        ("launcher cancel", launcher_cancel, ("start", "training")),
        ("requeue", requeue, ("start", "training", "save", "shutdown")),
        ("stop signal", stop_signal, ("save",)),  # without a new checkpoint it is the end
        ("preemption", preempt, ("start", "training", "save")),
        ("node down", kill_node, ("start", "training", "save")),
        ("slurmd stopped", stop_slurmd, ("start", "training")),
        ("kill rank", kill_rank, ("training", "save")),
        ("slurmctld restarted", restart_slurmctld, ("start", "training", "shutdown")),
    )
    for phase in phases
}


def strike(job: BatchJob, kind: str, expected: Losses) -> Fault:
    phase, blow = KINDS[kind]
    fault, began = Fault(kind, phase), time.monotonic()
    job.submit()
    if not job.reach(phase):
        fault.note = "the moment did not come"
    committed = (newest_good(job.folder.checkpoints).step or 0) if job.folder.checkpoints.exists() else 0
    log = job.folder.rank_log(0)
    starts = len(resumed_after(log.read_text(errors="replace"))) if log.exists() else 0
    blow(job)
    state = job.end()
    newer = resumed_after(log.read_text(errors="replace"))[starts:] if log.exists() else []
    fault.lost_steps = max(0, *(committed - after for after in newer), 0)
    fault.recovered = state == "COMPLETED" and same(losses(job.folder), expected)
    fault.seconds = round(time.monotonic() - began, 2)
    if not fault.recovered:
        steps = [step for step, _ in losses(job.folder)]
        fault.note += f" {state}; steps {steps}; log {re.sub(chr(10), ' | ', job.slurm.logs())[-2500:]}"
    return fault


def undisturbed(slurm: Slurm) -> Losses:
    """The losses of the same training on this machine."""
    run = slurm.runs / "alone"
    shape = ("cluster=cpu", "cluster.node.num_gpus=2")
    slurm.launcher("run", *shape, *TRAINING, f"run_dir={run}")
    return losses(RunFolder(run))


def strike_all(slurm: Slurm, kinds: list[str], chance: random.Random) -> Summary:
    summary, expected = Summary(), undisturbed(slurm)
    for number, kind in enumerate(kinds):
        job = BatchJob(slurm, slurm.runs / f"job-{number}", chance)
        try:
            summary.add(strike(job, kind, expected))
            slurm.clear()
            summary.left += job.marked.left()
        finally:
            job.marked.kill()
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phase", choices=["start", "training", "save", "shutdown"], help="these alone")
    given = parser.parse_args()
    kinds = [kind for kind, (phase, _) in KINDS.items() if given.phase in (None, phase)]
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name, one_cluster() as cluster:
        slurm = Slurm(cluster.folder, Path(name))
        summary = strike_all(slurm, drawn(kinds, given.faults, chance), chance)
    print(json.dumps({"seed": given.seed, **summary.to_dict()}))
    return 0 if summary.passed else 1


if __name__ == "__main__":
    sys.exit(main())
