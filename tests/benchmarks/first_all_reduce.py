"""The job of the start benchmark: one all-reduce, then a mark with the time; leaves when the measurer says `go`."""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

folder = Path(dict(argument.partition("=")[::2] for argument in sys.argv[1:])["dir"])
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
mark = folder / f".mark-{dist.get_rank()}"
mark.write_text(json.dumps({"at": time.time(), "pid": os.getpid(), "sum": total.item()}))
mark.rename(folder / f"mark-{dist.get_rank()}")
while not (folder / "go").exists():
    time.sleep(0.01)
dist.destroy_process_group()
