"""Habit: environment variables set in the script, before torch is imported, which torch reads then."""

import ctypes
import json
import logging
import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "2"
os.environ.setdefault("TORCH_LOGS", "+dynamo,guards")
os.environ.update({"TORCH_DISTRIBUTED_DEBUG": "DETAIL"})

import torch
import torch.distributed as dist

maps = Path("/proc/self/maps").read_text().splitlines()
openblas = ctypes.CDLL(next(line.split()[-1] for line in maps if "openblas" in line))
found = {
    "numpy": openblas.scipy_openblas_get_num_threads64_(),
    "threads": torch.get_num_threads(),
    "dynamo": logging.getLogger("torch._dynamo").level,
    "guards": logging.getLogger("torch._dynamo.guards.__guards").level,
    "debug": str(dist.get_debug_level()),
    "spec": torch.__spec__.name,
    "loader": type(torch.__loader__).__name__,
}
Path(f"found-{os.environ['RANK']}.json").write_text(json.dumps(found))
