"""Habits: reads what torchrun sets, sets others before it imports torch, and has an elastic main with @record."""

import ctypes
import json
import logging
import os
import sys
import time
from pathlib import Path

NAMES = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
         "ROLE_WORLD_SIZE", "ROLE_NAME", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "OMP_NUM_THREADS",
         "TORCH_NCCL_ASYNC_ERROR_HANDLING"]  # fmt: skip

place = {name: os.environ[name] for name in NAMES}
names = sorted(name for name in os.environ if name.startswith(("TORCHELASTIC", "MASTER")))
names.remove("TORCHELASTIC_SIGNALS_TO_HANDLE") if "TORCHELASTIC_SIGNALS_TO_HANDLE" in names else None  # torchrun's

os.environ["OMP_NUM_THREADS"] = "2"
os.environ.setdefault("TORCH_LOGS", "+dynamo,guards")
os.environ.update({"TORCH_DISTRIBUTED_DEBUG": "DETAIL"})

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record


def found() -> dict[str, object]:
    maps = Path("/proc/self/maps").read_text().splitlines()
    openblas = ctypes.CDLL(next(line.split()[-1] for line in maps if "openblas" in line))
    return {
        "numpy": openblas.scipy_openblas_get_num_threads64_(),
        "threads": torch.get_num_threads(),
        "dynamo": logging.getLogger("torch._dynamo").level,
        "guards": logging.getLogger("torch._dynamo.guards.__guards").level,
        "debug": str(dist.get_debug_level()),
        "spec": torch.__spec__.name,
        "loader": type(torch.__loader__).__name__,
    }


@record
def main() -> None:
    Path(f"found-{place['RANK']}.json").write_text(json.dumps(found()))
    Path(f"place-{place['RANK']}.json").write_text(json.dumps({**place, "names": names}))
    while not Path(f"place-{1 - int(place['RANK'])}.json").exists():  # the first failure ends the other rank
        time.sleep(0.05)
    if "fail" in sys.argv:
        raise ValueError("noted by record")


main()
