"""Habit: checkpoints by torch.save with classes of the script's own, in a folder that it changes to."""

import argparse
import os
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
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr)
    for step in range(3):
        loss = model(torch.full((2, 4), float(dist.get_rank() + step))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save({"config": Config(options.lr, options.names), "model": model.module.state_dict()}, "last.pt")
    back = torch.load("last.pt", weights_only=False)
    assert isinstance(back["config"], Config)
    weights = [f"{w:.6f}" for w in back["model"]["weight"].flatten().tolist()]
    Path("weights.txt").write_text(f"{weights} {back['config']}\n")
    Path("last.pt").unlink()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
