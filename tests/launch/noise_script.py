"""A job that prints more than any pipe holds between its all-reduces.

Arguments: mb=N, of each rank; steps=N; dir=FOLDER for marks: after its first step each rank waits until `go` is there.
"""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

options = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
steps, num_bytes = int(options.get("steps", 10)), int(float(options.get("mb", 1)) * 1e6)
rank = int(os.environ["RANK"])
dist.init_process_group("gloo")
total = torch.ones(1)
for step in range(steps):
    for _ in range(num_bytes // steps // 80):
        print("x" * 79, flush=True)
    dist.all_reduce(total)
    if step == 0 and "dir" in options:
        (Path(options["dir"]) / f"began-{rank}").touch()
        while not (Path(options["dir"]) / "go").exists():
            time.sleep(0.02)
print(f"rank {rank} made {steps} steps", flush=True)
dist.destroy_process_group()
