"""A two-node training under attack: its losses and its end must be those of the same training left alone.

    python tests/faults/attack.py [--seconds 60] [--seed 0] [--steps 60]

Agents on loopback addresses train the gpt recipe, once undisturbed, once with tests/faults/attacker.py as another
user (nobody, where this is root): on the coordinator's port without any knowledge, on the same port with the job's run
id, and with noise on torch's store. The last line is JSON; the exit code is 1 where the two trainings differ, or where
something was let in.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fault_training import HOSTS, Nodes, losses, token_file, training

from launcher.rendezvous.config import endpoint
from launcher.run.folder import RunFolder

ATTACKER = Path(__file__).with_name("attacker.py")
RUN_ID = "simulated"  # of tests/launch/node_driver.py


@dataclass
class Outcome:
    """What became of a training."""

    codes: dict[str, int]
    losses: list[tuple[int, float]]
    seconds: float


@dataclass
class Attack:
    """What the attackers did, and what it changed."""

    seconds: float
    attackers: list[dict[str, Any]]
    undisturbed: Outcome
    attacked: Outcome

    @property
    def harmless(self) -> bool:
        same = self.undisturbed.losses == self.attacked.losses and self.undisturbed.codes == self.attacked.codes
        return same and bool(self.attacked.losses) and not any(a["let_in"] for a in self.attackers)


def run(job: Nodes) -> Outcome:
    """Start the agents of a job and wait for their end."""
    began = time.monotonic()
    for name in HOSTS:
        job.start(name)
    codes = job.finish(timeout_s=600)
    return Outcome(codes, losses(RunFolder(job.run_dir)), round(time.monotonic() - began, 1))


def attackers(job: Nodes, *, seconds: float, seed: int) -> list[subprocess.Popen[str]]:
    """One that knows nothing, one that knows the run id and whom to spy on; as another user where that is allowed."""
    command = [sys.executable, str(ATTACKER), endpoint(job.host, job.port), f"--seconds={seconds}"]
    agent = next(iter(job.agents.values()))
    other_user = os.getuid() == 0
    knowing = [f"--run-id={RUN_ID}", *(["--read", str(agent.pid)] if other_user else [])]
    user = ["--user=nobody"] if other_user else []
    return [
        subprocess.Popen([*command, f"--seed={seed + number}", *words, *user], stdout=subprocess.PIPE, text=True)
        for number, words in enumerate(([], knowing))
    ]


def store_port(job: Nodes) -> int | None:
    """Where torch's store of the present round listens: the first agent's other port."""
    listening = {
        int(fields[1].rpartition(":")[2], 16): fields[9]
        for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
        if fields[3] == "0A"
    }
    links = set()
    for fd in Path(f"/proc/{job.agents[HOSTS[0]].pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            links.add(str(fd.readlink()))
    ports = [port for port, inode in listening.items() if f"socket:[{inode}]" in links]
    return next((port for port in ports if port != job.port), None)


def attack(folder: Path, *, seconds: float, seed: int, steps: int) -> Attack:
    """Train twice, the second time under attack from the start on."""
    data = token_file(folder)
    undisturbed = run(training(folder / "undisturbed", data, f"train.steps={steps}"))
    job = training(folder / "attacked", data, f"train.steps={steps}")
    began = time.monotonic()
    try:
        for name in HOSTS:
            job.start(name)
        raiders = attackers(job, seconds=seconds, seed=seed)
        if job.wait_for(lambda: "step 1/" in job.log(0), timeout_s=300) and (port := store_port(job)):
            noise = [sys.executable, str(ATTACKER), endpoint(job.host, port), "--store", f"--seconds={seconds / 3}"]
            raiders.append(subprocess.Popen(noise, stdout=subprocess.PIPE, text=True, cwd="/"))
        codes = job.finish(timeout_s=600)
        taken = round(time.monotonic() - began, 1)
        reports = [json.loads(raider.communicate(timeout=seconds + 400)[0].splitlines()[-1]) for raider in raiders]
    finally:
        job.kill_all()
    attacked = Outcome(codes, losses(RunFolder(job.run_dir)), taken)
    return Attack(seconds, reports, undisturbed, attacked)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)  # about as long as the attack, on two idle cores
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = attack(Path(name), seconds=given.seconds, seed=given.seed, steps=given.steps)
    report = asdict(found)
    for outcome in (report["undisturbed"], report["attacked"]):
        outcome["losses"] = [len(outcome["losses"]), *outcome["losses"][-1:]]
    print(json.dumps({**report, "harmless": found.harmless, "load": os.getloadavg()[0]}))
    return 0 if found.harmless else 1


if __name__ == "__main__":
    sys.exit(main())
