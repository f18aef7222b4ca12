"""A job of steps with a checkpoint: resumes after the newest finished step, reports every step to its agent.

Arguments: steps=N, dir=FOLDER (the checkpoint and marks), step_s=S; until=PATH continues until that file exists.
slow=RANK sleeps longer and says so itself; busy=RANK computes longer, and is measured by the pulse.
"""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from launcher.worker.stop import Pulse

options = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
folder, steps, step_s = Path(options["dir"]), int(options.get("steps", 1000000)), float(options.get("step_s", 0.02))
rank, node = int(os.environ["RANK"]), int(os.environ["GROUP_RANK"])

dist.init_process_group("gloo")
pulse = Pulse()
saved = folder / "step"
first = torch.tensor([int(saved.read_text()) if rank == 0 and saved.exists() else 0])
dist.broadcast(first, src=0)
restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
dp = os.environ.get("LAUNCHER_DP")
print(f"node {node} rank {rank} restart {restarts} begins after step {first.item()}, dp={dp}")
print(f"store at {os.environ['MASTER_ADDR']}, secret {os.environ.get('LAUNCHER_SECRET')}")
sys.stdout.flush()

for step in range(int(first.item()) + 1, steps + 1):
    began = time.monotonic()
    total = torch.ones(1)
    time.sleep(step_s)
    if options.get("slow") == str(rank):
        time.sleep(3 * step_s)
    own_s: float | None = time.monotonic() - began
    if "busy" in options:
        own_s, enough = None, time.thread_time() + step_s * (4 if options["busy"] == str(rank) else 0.5)
        while time.thread_time() < enough:
            pass
    if options.get("stuck") == f"{rank}:{step}":
        time.sleep(1000)
    total[0] = rank == 0 and "until" in options and Path(options["until"]).exists()
    dist.all_reduce(total)
    if rank == 0:
        temporary = folder / ".step"
        temporary.write_text(str(step))
        temporary.replace(saved)
    if pulse.step_done(step, step_s=time.monotonic() - began, own_s=own_s):
        print(f"rank {rank} was asked to stop after step {step}", flush=True)
        break
    if total.item():
        break
pulse.close()
dist.destroy_process_group()
