"""A job that hangs at a chosen point, and sends no heartbeats.

stuck=R   rank R sleeps before the process group, so that the others wait for it   busy=R   rank R computes instead,
until FOLDER/end exists   early=R   rank R leaves with exit code 0, where the others have a collective before them
"""

import os
import sys
import time
from pathlib import Path

rank = int(os.environ["RANK"])
options = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
print(f"rank {rank} begins", flush=True)


def load_data() -> None:
    time.sleep(1000)


if options.get("stuck") == str(rank):
    load_data()
if options.get("busy") == str(rank):
    while not Path(options["end"]).exists():
        sum(range(10000))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
if "early" in options:
    early = torch.tensor([os.getpid() if options["early"] == str(rank) else 0])
    dist.all_reduce(early)
    if int(early) == os.getpid():
        dist.destroy_process_group()
        sys.exit(0)
    while Path(f"/proc/{int(early)}").exists():  # until its end was seen
        time.sleep(0.02)
    dist.all_reduce(total)
dist.destroy_process_group()
