"""Habits: checkpoints by torch.save with classes of the script's own, in a folder that it changes to.

No destroy_process_group, a daemon thread that sleeps on, and a child process that outlives its line.
"""

import argparse
import os
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist


@dataclass
class Config:
    lr: float = 0.1
    names: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    dist.init_process_group("gloo")
    folder = Path(f"checkpoints-{dist.get_rank()}")
    folder.mkdir()
    os.chdir(folder)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    for step in range(3):  # by hand: DistributedDataParallel and torch.optim import torch's compiler in every rank
        model.zero_grad()
        model(torch.full((2, 4), float(dist.get_rank() + step))).square().mean().backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.data -= options.lr / dist.get_world_size() * parameter.grad
    torch.save({"config": Config(options.lr, options.names), "model": model.state_dict()}, "last.pt")
    back = torch.load("last.pt", weights_only=False)
    assert isinstance(back["config"], Config)
    weights = [f"{w:.6f}" for w in back["model"]["weight"].flatten().tolist()]
    Path("weights.txt").write_text(f"{weights} {back['config']}\n")
    Path("last.pt").unlink()


if __name__ == "__main__":
    main()
    threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
    child = subprocess.Popen(["sh", "-c", "sleep 0.2; echo late > late.txt"])
    total = torch.ones(1)
    dist.all_reduce(total)
    work = dist.all_reduce(torch.ones(1), async_op=True)
    Path("total.txt").write_text(str(total.item()))
    work.wait()
    child.wait()
