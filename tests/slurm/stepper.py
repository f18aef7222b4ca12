"""A small training job for the tests of a job's life: steps of 0.2 s, a checkpoint when asked to stop, resume.

stepper.py STEPS [fail=STEP] [checkpoint-every=STEPS] [after-resume=STEPS] [until=FILE]

It writes steps.jsonl: every step that was done, and in which start.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from launcher.run.checkpoints import VERSION, folder_name, newest_good, write_manifest
from launcher.run.folder import RunFolder
from launcher.worker.stop import Pulse

STEP_S = 0.2


def save(run: RunFolder, step: int) -> None:
    """A checkpoint without tensors."""
    folder = run.checkpoints / folder_name(step)
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, {"version": VERSION, "step": step, "files": {}})


def main() -> int:
    num_steps, options = int(sys.argv[1]), dict(word.partition("=")[::2] for word in sys.argv[2:])
    run, rank = RunFolder(Path(os.environ["LAUNCHER_RUN_DIR"])), int(os.environ["RANK"])
    start = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    dist.init_process_group("gloo")
    print(f"rank {rank} runs on {socket.gethostname()}, secret {os.environ.get('WANDB_API_KEY')}", flush=True)
    pulse = Pulse()
    first = newest_good(run.checkpoints).step or 0
    if start and "after-resume" in options:
        num_steps = first + int(options["after-resume"])
    for step in range(first + 1, num_steps + 1):
        time.sleep(STEP_S)
        dist.all_reduce(ends := torch.ones(1) * (rank == 0 and Path(options.get("until", "/no/file")).exists()))
        if rank == 0:
            with (run.path / "steps.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "start": start, "world": dist.get_world_size()}) + "\n")
        if rank == 0 and step % int(options.get("checkpoint-every", num_steps + 1)) == 0:
            save(run, step)
        if step == int(options.get("fail", 0)):
            raise RuntimeError("this job fails by itself")
        if ends.item():
            break
        if pulse.step_done(step, step_s=STEP_S):
            pulse.close()
            dist.destroy_process_group()
            if rank == 0:
                time.sleep(2)  # a checkpoint that takes its time, when the other ranks have ended already
                save(run, step)
            return 0
    pulse.close()
    if rank == 0:
        run.result.write_text("{}\n")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
