"""Habit: no destroy_process_group, a daemon thread that sleeps on, and a child process that outlives its line."""

import os
import subprocess
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
child = subprocess.Popen(["sh", "-c", f"sleep 0.2; echo late > late-{os.environ['RANK']}.txt"])
work = dist.all_reduce(torch.ones(1), async_op=True)
Path(f"total-{os.environ['RANK']}.txt").write_text(str(total.item()))
work.wait()
child.wait()
