"""Watches the driver of a job with spares: `python -m launcher.slurm.guard JOB HOST`, on another node.

sbatch --no-kill keeps a job alive when one of its nodes dies. If that is the node of the batch script, the job goes on
without a driver until its time limit. The guard requeues it then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from launcher.slurm.allocation import removed_nodes
from launcher.slurm.command import ask

POLL_S = 15.0


def guard_argv(job_id: str, host: str, *, on: str) -> tuple[str, ...]:
    """Return the srun command that starts the guard of `host` on another node, next to what runs there."""
    module = "launcher.slurm.guard"
    place = ("--nodes=1", "--ntasks=1", f"--nodelist={on}", "--overlap", "--gpus-per-node=0", "--cpus-per-task=1")
    return ("srun", *place, sys.executable, "-P", "-m", module, job_id, host)


def main(argv: Sequence[str]) -> int:
    """Wait until Slurm has removed the host from the job, then requeue the job."""
    job_id, host = argv
    while not removed_nodes(job_id, [host]):
        time.sleep(POLL_S)
    print(f"launcher: {host}, where the batch script ran, is gone: requeueing the job", file=sys.stderr, flush=True)
    answer = ask(("scontrol", "requeue", job_id))
    if answer.code:
        print(f"launcher: scontrol requeue {job_id} failed: {answer.reason}", file=sys.stderr, flush=True)
    return answer.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
