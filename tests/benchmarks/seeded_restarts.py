"""Seeded disasters over three simulated nodes: each must come back with the plan's order, and leave nothing behind.

    python tests/benchmarks/seeded_restarts.py [--trials 50] [--seed 0] [--ranks 2]

Nodes are agents on loopback addresses, with host names that sort against the plan. A trial kills a rank, an agent or
the coordinator (the agent of the first node; killed agents are started again, as a batch system would), or stops a
rank with SIGSTOP; then the job must finish further steps, every rank with the node and number that the plan gives it.
The tally goes to stderr, the last line on stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "launch"))

from nodes import Nodes

from launcher import process
from launcher.agent import stack_dump as stacks

HOSTS = ("node2", "node10", "NODE1")
KINDS = ("rank", "agent", "coordinator", "stopped rank")
TRIAL_S, HANG_S = 240.0, 4.0


def strike(job: Nodes, kind: str, chance: random.Random) -> None:
    """One disaster."""
    name = HOSTS[0] if kind == "coordinator" else chance.choice(HOSTS[1:] if kind == "agent" else HOSTS)
    if kind in ("agent", "coordinator"):
        job.agents[name].kill()
        job.agents[name].wait()
        time.sleep(chance.uniform(0, 0.5))
        job.start(name)
        return
    victim = chance.choice(job.ranks_of(name))
    os.kill(victim, signal.SIGSTOP if kind == "stopped rank" else signal.SIGKILL)


def trial(job: Nodes, kind: str, chance: random.Random) -> dict[str, object]:
    """Inject the fault, wait for steps of a new start, check the order."""
    starts = [len(rank) for rank in job.begun()]
    began = time.monotonic()
    strike(job, kind, chance)
    restarted = job.wait_for(
        lambda: all(len(now) > before for now, before in zip(job.begun(), starts, strict=True)), timeout_s=TRIAL_S
    )
    stepped = restarted and job.wait_for_steps(2, timeout_s=TRIAL_S)
    expected = [(rank // job.ranks, rank) for rank in range(len(starts))]
    order = stepped and [now[-1] for now in job.begun()] == expected
    return {"kind": kind, "came back": stepped, "order": order, "seconds": round(time.monotonic() - began, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2, help="on each node")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    trials: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launch = {"max_restarts": 3, "refill_steps": 1, "hang_timeout_s": HANG_S}
        job = Nodes(folder, hosts=HOSTS, ranks=arguments.ranks, launch=launch, args=(f"until={folder / 'end'}",))
        try:
            for host in chance.sample(HOSTS, len(HOSTS)):
                job.start(host)
            if not job.wait_for_steps():
                raise SystemExit(f"the job did not begin: {[job.reported(host) for host in HOSTS]}")
            while len(trials) < arguments.trials:
                trials.append(trial(job, chance.choice(KINDS), chance))
                print(f"{len(trials):3} {trials[-1]}", file=sys.stderr, flush=True)
                if not trials[-1]["came back"]:
                    print("\n".join(f"== {h}\n{job.reported(h)[-3000:]}" for h in HOSTS), file=sys.stderr)
                    stacks_of_all = (f"== {pid}: {stacks.py_spy(pid)}" for pid in job.members())
                    print("\n".join(stacks_of_all), (job.run_dir / "ledger.jsonl").read_text()[-6000:], file=sys.stderr)
                    break
            members = job.members()
            (folder / "end").touch()
            codes = job.finish(timeout_s=TRIAL_S) if trials[-1]["came back"] else {}
            left = [pid for pid in members if process.state(pid) not in (None, "Z")]
        finally:
            job.kill_all()
    came = sum(bool(t["came back"] and t["order"]) for t in trials)
    by_kind = {kind: [t for t in trials if t["kind"] == kind] for kind in KINDS}
    report = {
        "trials": arguments.trials,
        "came_back_in_order": came,
        "exit_codes": codes,
        "left_behind": left,
        "seconds_median": {k: median(float(str(t["seconds"])) for t in ts) for k, ts in by_kind.items() if ts},
        "count": {kind: len(ts) for kind, ts in by_kind.items()},
        "load": os.getloadavg()[0],
    }
    print(f"{came} of {arguments.trials} came back in the plan's order; left behind: {left}", file=sys.stderr)
    print(json.dumps(report))
    return 0 if came == arguments.trials and not left and set(codes.values()) == {0} else 1


if __name__ == "__main__":
    sys.exit(main())
