"""Time from kill -9 of a rank to the next finished step: ours against torchrun with --max-restarts, side by side.

    python tests/benchmarks/restart_time.py [--ranks 4] [--repeats 5]

Both run tests/launch/step_script.py, which resumes from its newest finished step. torchrun gets
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: without it its new ranks hung in init_process_group here (torch 2.13, one
node, in the three tries watched). The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from launcher import process

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
SCRIPT = LAUNCH / "step_script.py"
GOAL = 0.5


def command(kind: str, folder: Path, ranks: int) -> list[str]:
    python = sys.executable
    if kind == "torchrun":
        start = [python, "-m", "torch.distributed.run", "--standalone", "--max-restarts=3", f"--nproc-per-node={ranks}"]
        return [*start, str(SCRIPT), f"dir={folder}"]
    launch = json.dumps({"max_restarts": 3})
    return [python, str(LAUNCH / "driver.py"), str(folder / "run"), str(SCRIPT), str(ranks), launch, f"dir={folder}"]


def saved(folder: Path) -> int:
    path = folder / "step"
    return int(path.read_text()) if path.exists() else 0


def wait_for_step(folder: Path, goal: int) -> None:
    deadline = time.monotonic() + 240
    while saved(folder) < goal:
        if time.monotonic() > deadline:
            raise SystemExit(f"no step {goal} within 240 s")
        time.sleep(0.005)


def ranks_below(pid: int, ranks: int) -> list[int]:
    """The rank processes: those without children of their own below the command, the newest `ranks` of them."""
    below = process.descendants(pid)
    return [child for child in below if not process.descendants(child)][-ranks:]


def measure(kind: str, ranks: int) -> float:
    """Seconds from the kill of the last rank to a step that was finished after it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = subprocess.Popen(
            command(kind, folder, ranks),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )
        try:
            wait_for_step(folder, 20)
            victim = ranks_below(job.pid, ranks)[-1]
            os.kill(victim, signal.SIGKILL)
            began = time.monotonic()
            time.sleep(0.1)  # a step of 20 ms that was under way is finished by now, or never
            wait_for_step(folder, saved(folder) + 1)
            return time.monotonic() - began
        finally:
            process.signal_all([*process.descendants(job.pid), job.pid], signal.SIGKILL)
            job.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {"torchrun": [], "ours": []}
    for _ in range(arguments.repeats):
        for kind, found in times.items():
            found.append(measure(kind, arguments.ranks))
            print(f"{kind}: {found[-1]:.2f} s", file=sys.stderr, flush=True)
    middle = {kind: median(found) for kind, found in times.items()}
    ratio = middle["ours"] / middle["torchrun"]
    print(
        f"kill to next step, {arguments.ranks} ranks: torchrun {middle['torchrun']:.2f} s, "
        f"ours {middle['ours']:.2f} s, ratio {ratio:.2f} (goal {GOAL})",
        file=sys.stderr,
    )
    print(json.dumps({"ranks": arguments.ranks, "times": times, "ratio": ratio, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
