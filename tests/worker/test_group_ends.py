"""A script that destroys its process group before its model: gloo's threads have what they need of the interpreter."""

from __future__ import annotations

import sys
from pathlib import Path

import preloaded
import pytest

# gloo's threads run only where this one sleeps or waits: without the wait, 6 of 6 starts hung. On a busy machine they
# hardly run at all, so that is for the last of what they do alone.
SCRIPT = """
import os
import torch
import torch.distributed as dist
from torch.distributed import destroy_process_group

def let_only_this_thread_run():
    core = {min(os.sched_getaffinity(0))}
    for thread in map(int, os.listdir("/proc/self/task")):
        os.sched_setaffinity(thread, core)
        if thread != os.getpid():
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))

def train():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 64))
    let_only_this_thread_run()
    model(torch.ones(4, 64)).sum().backward()
    destroy_process_group()  # the model, which has the last reference to the group, is freed after it

for _ in range(2):
    train()
print("no deadlock", flush=True)
os._exit(0)  # an interpreter takes itself apart with threads that hardly run only after minutes, on a busy machine
"""


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_model_may_be_freed_after_its_process_group(start: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    words = [f"launch.start={start}", "tracking=none", "cluster.node.num_gpus=1", f"run_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "launcher.cli", "run", *words, f"script={tmp_path / 'train.py'}"]
    done = preloaded.run(command, capture_output=True, timeout=500, text=True)  # 60 s on a core with two busy loops
    assert (done.returncode, done.stdout) == (0, "no deadlock\n"), done.stderr[-3000:]
