"""Does the recipe collectives report the busbw of a bare loop? Two CPU ranks, in turn, the best of each.

python tests/benchmarks/bare_loop.py [--rounds 3] [--bytes 4194304]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CALLS = 150
LOOP = """
import os, sys, time
import torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
buffer = torch.ones(int(sys.argv[1]) // 4)
for _ in range(5):
    dist.all_reduce(buffer)
dist.barrier()
begin = time.perf_counter()
for _ in range(int(sys.argv[2])):
    dist.all_reduce(buffer)
taken = torch.tensor((time.perf_counter() - begin) / int(sys.argv[2]))
dist.all_reduce(taken)
if dist.get_rank() == 0:
    print(float(taken) / dist.get_world_size())
dist.destroy_process_group()
"""


def bare(size: int) -> float:
    """Bus bandwidth of plain torch, GB/s: of two ranks, once the bytes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-c", LOOP, str(size), str(CALLS)]
    ranks = [
        subprocess.Popen(argv, env=os.environ | own | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    seconds = float(ranks[0].communicate()[0])
    ranks[1].wait()
    return size / seconds / 1e9


def recipe(size: int) -> float:
    """The same by the recipe."""
    with tempfile.TemporaryDirectory(prefix="bare-") as folder:
        words = ["recipe=collectives", "cluster.node.num_gpus=2", "layout.tp=2", "layout.pp=1", "layout.dp=1"]
        options = [f"recipe.sizes={size}:{size}:2", "recipe.operations=[all_reduce]", f"recipe.iterations={CALLS}"]
        command = [sys.executable, "-m", "launcher.cli", "run", *words, *options, "tracking=none"]
        subprocess.run([*command, f"run_dir={folder}/run"], check=True, capture_output=True)
        row = json.loads((Path(folder) / "run" / "result.json").read_text())["results"][0]
    return float(row["busbw_gbytes_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bytes", type=int, default=4 << 20)
    asked = parser.parse_args()
    loops, recipes = [], []
    for turn in range(asked.rounds):
        loops.append(bare(asked.bytes))
        recipes.append(recipe(asked.bytes))
        print(f"round {turn + 1}: bare loop {loops[-1]:.3f} GB/s, recipe {recipes[-1]:.3f} GB/s", flush=True)
        time.sleep(0.5)
    print(f"best of each: recipe over bare loop {max(recipes) / max(loops):.3f}")


if __name__ == "__main__":
    main()
