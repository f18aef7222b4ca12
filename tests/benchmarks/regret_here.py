"""How good is the first choice on this machine's CPU ranks? Every (tp, pp, dp, ZeRO stage) of a grid is really run.

    python tests/benchmarks/regret_here.py [--cluster cpu_measured] [--ranks 8 4] [--rounds 3] [--steps 4]
    python tests/benchmarks/regret_here.py --keep grid.json --minutes 2 --portion 9    # as often as needed, then
    python tests/benchmarks/regret_here.py --keep grid.json --rounds 0     # reports what was kept, planned again

Plans gpt_tiny, and a model with four times as many parameters, on 8 and 4 ranks; runs all layouts of each grid in the
same warm ranks, interleaved, `rounds` times, and prints for each grid the rank correlation of predicted and measured
step times, how much slower the first choice is than the best measured, and the mean error. Run
`launcher calibrate cluster=cpu` before, and nothing next to it: step times are wall times. On a machine that others
use, core seconds over cores and the fastest round are fairer: other work lengthens a step and never shortens it. All
are printed, with the load. `--keep` adds what is measured to a file, `--portion` runs so many layouts at a time, so
that a long grid may be measured bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from launcher import env
from launcher.config.compose import load
from launcher.errors import LauncherError
from launcher.planner import Plan, write_plan
from launcher.planner.build import make_plan

MODELS = {
    "gpt_tiny": ("model=gpt_tiny",),
    "four times": ("model=gpt_tiny", "model.hidden=256"),  # 12 · layers · hidden²: four times as many parameters
}
FIXED = ("layout.recompute=none", "layout.sequence_parallel=false", "layout.micro_batch=1", "layout.schedule=1f1b")


@dataclass
class Measured:
    """One layout: what was predicted, and what each round found."""

    name: str
    plan: Plan
    walls: list[float]
    cores: list[float]

    @property
    def predicted(self) -> float:
        return float(self.plan.estimate["step_time_s"])


def grid(words: Sequence[str], ranks: int) -> Iterator[tuple[str, Plan]]:
    """Return every legal (tp, pp, dp, ZeRO stage) on this number of ranks."""
    degrees = [d for d in (1, 2, 4, 8) if d <= ranks]
    for tp in degrees:
        for pp in (pp for pp in degrees if tp * pp <= ranks):
            dp = ranks // tp // pp
            for zero in range(4 if dp > 1 else 1):
                pinned = (f"layout.tp={tp}", f"layout.pp={pp}", f"layout.dp={dp}", f"layout.zero_stage={zero}")
                try:
                    settings = load([*words, *FIXED, *pinned, f"cluster.node.num_gpus={ranks}"])
                    plan = make_plan(settings.job, settings.request, settings.run_options, to_run=True)
                except LauncherError:
                    continue
                yield f"tp{tp} pp{pp} dp{dp} zero{zero}", plan


def run_round(
    found: Sequence[Measured], words: Sequence[str], folder: Path, *, ranks: int, steps: int, turn: int
) -> float:
    """One round over these layouts, begun elsewhere each time; returns its seconds."""
    trials, run = folder / f"trials-{turn}", folder / f"run-{turn}"
    trials.mkdir()
    shift = turn * len(found) // 3 % len(found)
    order = [*found[shift:], *found[:shift]]
    for i, one in enumerate(order):
        write_plan(one.plan, trials / f"{i:03d}.json")
    command = [sys.executable, "-m", "launcher.cli", "run", *words, f"cluster.node.num_gpus={ranks}", "recipe=tune"]
    command += [f"recipe.trials={trials}", f"recipe.steps={steps}", "recipe.patience=1000", f"run_dir={run}"]
    began = time.monotonic()
    subprocess.run([*command, "tracking=none"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = json.loads((run / "result.json").read_text())["results"]
    cores = min(env.usable_cores(), ranks)
    for one, row in zip(order, rows, strict=True):
        one.walls.append(row["step_time_s"])
        one.cores.append(median(row["cpu_s"]) / cores)
    return time.monotonic() - began


@dataclass
class Kept:
    """The rounds of all grids in one file: grid → layout → seconds, and how long each round took."""

    file: Path | None
    grids: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, file: Path | None) -> Kept:
        return cls(file, json.loads(file.read_text()) if file and file.exists() else {})

    def missing(self, name: str, found: Sequence[Measured], turn: int) -> list[Measured]:
        """The layouts that were not yet measured in this round."""
        known = self.grids.get(name, {}).get("layouts", {})
        return [one for one in found if len(known.get(one.name, {}).get("walls", ())) <= turn]

    def add(self, name: str, found: Sequence[Measured], seconds: float, turn: int) -> None:
        grid = self.grids.setdefault(name, {"rounds_s": [], "layouts": {}})
        grid["rounds_s"] += [0.0] * (turn + 1 - len(grid["rounds_s"]))
        grid["rounds_s"][turn] = round(grid["rounds_s"][turn] + seconds, 1)
        for one in found:
            kept = grid["layouts"].setdefault(one.name, {"walls": [], "cores": []})
            kept["walls"].append(one.walls[-1])
            kept["cores"].append(one.cores[-1])
        if self.file:
            self.file.write_text(json.dumps(self.grids, indent=1))

    def into(self, name: str, found: Sequence[Measured]) -> list[Measured]:
        """The layouts of this grid that were measured, with what was."""
        known = self.grids.get(name, {}).get("layouts", {})
        return [
            Measured(one.name, one.plan, known[one.name]["walls"], known[one.name]["cores"])
            for one in found
            if one.name in known
        ]


def ranked(values: Sequence[float]) -> list[int]:
    order = sorted(range(len(values)), key=values.__getitem__)
    places = [0] * len(values)
    for place, i in enumerate(order):
        places[i] = place
    return places


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's."""
    n = len(a)
    return 1 - 6 * sum((x - y) ** 2 for x, y in zip(ranked(a), ranked(b), strict=True)) / (n * (n * n - 1))


def report(name: str, found: Sequence[Measured]) -> None:
    print(f"\n{name}: {len(found)} layouts, {min(len(one.walls) for one in found)} rounds")
    print(f"{'layout':24} {'predicted':>10} {'wall':>10} {'fastest':>10} {'core s/cores':>13}   (ms)")
    for one in sorted(found, key=lambda one: one.predicted):
        wall, fastest, core = (1e3 * seconds for seconds in (median(one.walls), min(one.walls), median(one.cores)))
        print(f"{one.name:24} {one.predicted * 1e3:10.0f} {wall:10.0f} {fastest:10.0f} {core:13.0f}")
    predicted = [one.predicted for one in found]
    first = min(range(len(found)), key=predicted.__getitem__)
    for what, values in (
        ("wall", [median(one.walls) for one in found]),
        ("wall of the fastest round", [min(one.walls) for one in found]),
        ("core seconds over cores", [median(one.cores) for one in found]),
    ):
        error = sum(abs(p / v - 1) for p, v in zip(predicted, values, strict=True)) / len(found)
        regret = values[first] / min(values) - 1
        print(
            f"against {what}: rank correlation {rank_correlation(predicted, values):.3f}, first choice {regret:.1%} "
            f"slower than the best, mean error {error:.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", default="cpu_measured")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin nothing after these")
    parser.add_argument("--portion", type=int, default=1000, help="layouts of one run")
    asked = parser.parse_args()
    kept, ends = Kept.of(asked.keep), time.monotonic() + 60 * asked.minutes
    wanted = {f"{model} on {ranks} ranks": (model, ranks) for model in asked.models for ranks in asked.ranks}
    grids = {}
    for name, (model, ranks) in wanted.items():
        words = (f"cluster={asked.cluster}", *MODELS[model])
        grids[name] = words, [Measured(layout, plan, [], []) for layout, plan in grid(words, ranks)]
    for turn, (name, (_, ranks)) in product(range(asked.rounds), wanted.items()):
        words, found = grids[name]
        while (left := kept.missing(name, found, turn)) and time.monotonic() < ends:
            now = left[: asked.portion]
            with tempfile.TemporaryDirectory(prefix="regret-") as folder:
                seconds = run_round(now, words, Path(folder), ranks=ranks, steps=asked.steps, turn=turn)
            kept.add(name, now, seconds, turn)
            load = os.getloadavg()[0]
            print(f"{name}: round {turn + 1}, {len(now)} layouts in {seconds:.0f} s, load {load:.1f}", flush=True)
    for name, (_, found) in grids.items():
        if measured := kept.into(name, found):
            report(name, measured)


if __name__ == "__main__":
    main()
