"""How good is the pick of `launcher tune`, and how long does it take, against really running the whole grid?

    python tests/benchmarks/regret_here.py --out FOLDER      # before: every layout, and how long that took
    python tests/benchmarks/tune_here.py FOLDER [--cluster cpu_measured] [--top 6] [--steps 4]

On each grid that the file has, tune chooses among the same layouts; its pick is compared with the best measured one,
and its seconds, planning included, with those of one round of the grid.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from regret_here import FIXED, MODELS, Kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cluster", default="cpu_measured")
    parser.add_argument("--top", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4)
    asked = parser.parse_args()
    os.chdir(asked.folder)  # its configs/cluster is found
    kept = Kept.of(Path("grid.json"))
    for name, grid in kept.grids.items():
        model, rest = name.rsplit(" on ", 1)
        ranks = int(rest.split()[0])
        freed = (
            "layout.tp=auto",
            "layout.pp=auto",
            "layout.dp=auto",
            "layout.virtual_stages=1",
            "cluster.default_layout={}",
        )
        words = [f"cluster={asked.cluster}", *MODELS[model], *FIXED, f"cluster.node.num_gpus={ranks}", *freed]
        with tempfile.TemporaryDirectory(prefix="tune-") as folder:
            began = time.monotonic()
            command = [sys.executable, "-m", "launcher.cli", "tune", *words, f"top={asked.top}", f"steps={asked.steps}"]
            done = subprocess.run(
                [*command, "tracking=none", f"run_dir={folder}/tune", "output=json"],
                check=True,
                capture_output=True,
                text=True,
            )
            seconds = time.monotonic() - began
        trials = [one for one in json.loads(done.stdout)["trials"] if one["measured_step_time_s"] is not None]
        pick = min(trials, key=lambda one: one["measured_step_time_s"])
        words = pick["layout"].split()
        zero = next((word for word in words if word.startswith("zero")), "zero0")
        picked = " ".join([*words[:3], zero])
        regrets = []
        for middle in (median, min):
            walls = {place: middle(found["walls"]) for place, found in grid["layouts"].items()}
            regrets.append(walls[picked] / min(walls.values()) - 1)
        whole = median(grid["rounds_s"])
        print(
            f"{name}: tune picked {picked} ({pick['measured_step_time_s'] * 1e3:.0f} ms), in the grid {regrets[0]:.1%} "
            f"slower than the best by the rounds' medians, {regrets[1]:.1%} by the fastest ones; in {seconds:.0f} s, "
            f"{seconds / whole:.0%} of the {whole:.0f} s of a round"
        )


if __name__ == "__main__":
    main()
