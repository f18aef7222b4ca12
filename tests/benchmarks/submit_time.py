"""How long `launcher submit` takes from the shell to sbatch's answer, on slurm/testcluster: goal 1.5 s.

    tests/benchmarks/submit_time.py [TRIALS]        as root, with Slurm installed (slurm/testcluster --help)

Prints each wall time, their median, and its ratio to the goal. The first trial also reads the files from disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

TESTCLUSTER = Path(__file__).parents[2] / "slurm" / "testcluster"
GOAL_S = 1.5


def main(trials: int) -> int:
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder:
        environment = {**os.environ, "SLURM_CONF": f"{folder}/etc/slurm.conf"}
        subprocess.run([TESTCLUSTER, "start", "--dir", folder], check=True, stdout=subprocess.DEVNULL)
        try:
            times = [submit(Path(folder) / f"run-{trial}", environment) for trial in range(trials)]
        finally:
            subprocess.run([TESTCLUSTER, "stop", "--dir", folder], check=True)
    print(f"median {median(times):.2f} s, {median(times) / GOAL_S:.2f} × the goal of {GOAL_S} s")
    return 0


def submit(run: Path, environment: dict[str, str]) -> float:
    """Return the wall time of one submission of a held job."""
    words = ["cluster=testcluster", "launch.extra=[--hold]", f"run_dir={run}"]
    began = time.perf_counter()
    argv = [sys.executable, "-m", "launcher.cli", "submit", *words]
    subprocess.run(argv, env=environment, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    print(f"{seconds:.2f} s")
    return seconds


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
