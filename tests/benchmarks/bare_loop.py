"""Does the recipe collectives report the busbw of a bare loop? Two CPU ranks, both ways by turns in the same processes.

python tests/benchmarks/bare_loop.py [--rounds 201] [--bytes 4194304] [--calls 8]

Every round has both, in changing order, on the same buffer, after the same warm-up calls and a barrier. The result is
the median of the rounds' ratios, with half the width that contains it with 95 %: many short rounds, so that it says
something on a loaded machine too. One JSON document is the last line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from math import sqrt
from statistics import median
from types import ModuleType

import torch
import torch.distributed as dist

from launcher.planner.options import CollectivesOptions
from launcher.resources import resource
from launcher.worker.metrics import nccl_tests

RANKS = 2


def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_collectives", resource("recipes") / "collectives.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def over_ranks(seconds: float) -> float:
    """The mean of all ranks, as the recipe reports it."""
    taken = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(taken)
    return float(taken) / RANKS


def bare(buffer: torch.Tensor, options: CollectivesOptions) -> float:
    """Seconds of a call in a loop of plain torch."""
    for _ in range(options.warmup):
        dist.all_reduce(buffer)
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(options.iterations):
        dist.all_reduce(buffer)
    return over_ranks((time.perf_counter() - begin) / options.iterations)


def measured(collectives: ModuleType, made: nccl_tests.Collective, options: CollectivesOptions) -> float:
    """Seconds of a call as the recipe times it."""
    return over_ranks(collectives.timed(made, torch.device("cpu"), options).mean_s)


def rank(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = nccl_tests.AxisGroup("world", dist.group.WORLD, tuple(range(RANKS)))
    made = nccl_tests.all_reduce(group, asked.bytes, torch.float32, torch.device("cpu"))
    made.fill()
    buffer = made.call.__closure__[0].cell_contents  # type: ignore[index]  # the very buffer of the recipe's call
    assert isinstance(buffer, torch.Tensor) and buffer.nbytes == asked.bytes
    options = CollectivesOptions(name="collectives", iterations=asked.calls, seconds=0.0, warmup=5)
    collectives, rounds = recipe(), []
    ways: list[tuple[str, Callable[[], float]]] = [
        ("bare", lambda: bare(buffer, options)),
        ("recipe", lambda: measured(collectives, made, options)),
    ]
    for turn in range(asked.rounds):
        buffer.fill_(1)
        found = {name: way() for name, way in (ways if turn % 2 else reversed(ways))}
        rounds.append(found)
    if dist.get_rank() == 0:
        factor = nccl_tests.busbw_factor("all_reduce", RANKS) * made.num_bytes / 1e9
        rates = {name: median(factor / each[name] for each in rounds) for name in rounds[0]}
        ratios = sorted(each["bare"] / each["recipe"] for each in rounds)
        middle = median(ratios)
        spread = 1.4826 * median(abs(ratio - middle) for ratio in ratios)  # of a normal distribution
        half = 1.96 * 1.2533 * spread / sqrt(len(ratios))  # of a median of so many
        print(json.dumps({"busbw_gbytes_per_s": rates, "recipe_over_bare": middle, "half_width": half}))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=201)
    parser.add_argument("--bytes", type=int, default=4 << 20)
    parser.add_argument("--calls", type=int, default=8)
    asked = parser.parse_args()
    if "RANK" in os.environ:
        rank(asked)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    each = [
        subprocess.Popen([sys.executable, *sys.argv], env=os.environ | own | {"RANK": str(i)}) for i in range(RANKS)
    ]
    sys.exit(max(process.wait() for process in each))


if __name__ == "__main__":
    main()
