"""Habit: random numbers from torch, numpy and random, and a shuffled DataLoader, with no seed and no sampler."""

import json
import os
import random
from pathlib import Path

import numpy
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

dist.init_process_group("gloo")
start = os.environ["TORCHELASTIC_RESTART_COUNT"]
drawn = {
    "torch": torch.rand(1, dtype=torch.float64).item(),
    "numpy": numpy.random.rand(),
    "random": random.random(),
    "shuffle": [int(i) for i in DataLoader(range(64), shuffle=True)],
    "workers": [round(float(x), 12) for x in DataLoader([0] * 4, collate_fn=lambda _: torch.rand(1), num_workers=1)],
}
everybody = [None] * dist.get_world_size()
dist.all_gather_object(everybody, drawn)
if dist.get_rank() == 0:
    distinct = {key: len({json.dumps(one[key]) for one in everybody}) for key in drawn}
    Path(f"distinct-{start}.json").write_text(json.dumps(distinct))
    drawn_file = Path(os.environ["DRAWN"])  # outside the folder that is compared: every run draws others
    with drawn_file.open("a") as out:
        out.write(json.dumps(everybody) + "\n")
dist.destroy_process_group()
if "restart" in os.environ.get("HABIT", "") and start == "0":
    raise SystemExit(3)
