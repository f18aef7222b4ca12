"""Habit: a script that reads torchrun's variables, and an elastic main with @record."""

import json
import os
import sys
import time
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

NAMES = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
         "ROLE_WORLD_SIZE", "ROLE_NAME", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "OMP_NUM_THREADS",
         "TORCH_NCCL_ASYNC_ERROR_HANDLING"]  # fmt: skip


@record
def main() -> None:
    place = {name: os.environ[name] for name in NAMES}
    names = sorted(name for name in os.environ if name.startswith(("TORCHELASTIC", "MASTER")))
    names.remove("TORCHELASTIC_SIGNALS_TO_HANDLE") if "TORCHELASTIC_SIGNALS_TO_HANDLE" in names else None  # torchrun's
    Path(f"place-{os.environ['RANK']}.json").write_text(json.dumps({**place, "names": names}))
    while not Path(f"place-{1 - int(place['RANK'])}.json").exists():  # the first failure ends the other rank
        time.sleep(0.05)
    if "fail" in sys.argv:
        raise ValueError("noted by record")


main()
