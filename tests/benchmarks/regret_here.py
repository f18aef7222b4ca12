"""How good is the first choice on this machine's CPU ranks? Every (tp, pp, dp, ZeRO stage) of a grid is really run.

    python tests/benchmarks/regret_here.py --out FOLDER    # all of it: about 20 minutes on two cores

calibrates this machine (`launcher calibrate cluster=cpu`), plans gpt_tiny, and a model with four times as many
parameters, on 8 and 4 ranks; runs all layouts of each grid in the same warm ranks, interleaved, three times, and prints
for each grid the rank correlation of predicted and measured step times, how much slower the first choice is than the
best measured, and the mean error. FOLDER gets the cluster file, what was measured (grid.json), the table (table.txt),
all figures (result.json) and a picture (plot.svg). The same command again goes on where it was interrupted, or writes
the figures anew from what was measured: with `--rounds 0` it measures nothing.

Run nothing next to it: step times are wall times. On a machine that others use, core seconds over cores and the fastest
round are fairer: other work lengthens a step and never shortens it. All are printed, with the load. `--portion` runs so
many layouts at a time, and `--minutes` begins nothing after these, so that a long grid may be measured bit by bit.
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
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from regret_plot import picture

from launcher import env
from launcher.config.compose import load
from launcher.errors import LauncherError
from launcher.planner import Plan, write_plan
from launcher.planner.build import make_plan

MODELS = {
    "gpt_tiny": ("model=gpt_tiny",),
    "four times": ("model=gpt_tiny", "model.hidden=256"),  # 12 · layers · hidden²: four times as many parameters
}
MEASURED = "cpu_measured"
ASKED_ERROR = 0.15
MOST_FAILED = 2  # runs of one round
WAYS = {  # to sum up rounds
    "wall": "wall_s", "wall of the fastest round": "fastest_s", "core seconds over cores": "core_s_over_cores",
}  # fmt: skip
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
    found: Sequence[Measured], words: Sequence[str], folder: Path, *, ranks: int, steps: int, turn: int, log: Path
) -> float:
    """One round over these layouts, begun elsewhere each time; returns its seconds. What ranks say goes to `log`."""
    trials, run = folder / f"trials-{turn}", folder / f"run-{turn}"
    trials.mkdir()
    shift = turn * len(found) // 3 % len(found)
    order = [*found[shift:], *found[:shift]]
    for i, one in enumerate(order):
        write_plan(one.plan, trials / f"{i:03d}.json")
    command = [sys.executable, "-m", "launcher.cli", "run", *words, f"cluster.node.num_gpus={ranks}", "recipe=tune"]
    command += [f"recipe.trials={trials}", f"recipe.steps={steps}", "recipe.patience=1000", f"run_dir={run}"]
    began = time.monotonic()
    with log.open("a") as said:
        subprocess.run([*command, "tracking=none"], check=True, stdout=subprocess.DEVNULL, stderr=said)
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


@dataclass
class Figures:
    """One grid: what the issue of its estimates is, by three ways to sum up the rounds."""

    grid: str
    layouts: list[dict[str, Any]]
    by: dict[str, dict[str, float]]


def figures_of(name: str, found: Sequence[Measured]) -> Figures:
    rows: list[dict[str, Any]] = [
        {
            "layout": one.name, "predicted_s": one.predicted, "wall_s": median(one.walls),
            "fastest_s": min(one.walls), "core_s_over_cores": median(one.cores), "walls_s": one.walls,
        }
        for one in sorted(found, key=lambda one: one.predicted)
    ]  # fmt: skip
    predicted = [row["predicted_s"] for row in rows]
    by = {}
    for what, key in WAYS.items():
        values = [row[key] for row in rows]
        errors = [p / v - 1 for p, v in zip(predicted, values, strict=True)]
        by[what] = {
            "rank_correlation": rank_correlation(predicted, values),
            "first_choice_slower": values[0] / min(values) - 1,
            "mean_error": sum(map(abs, errors)) / len(errors),
            "bias": sum(errors) / len(errors),
        }
    return Figures(name, rows, by)


def table(figures: Figures) -> str:
    rounds = min(len(row["walls_s"]) for row in figures.layouts)
    lines = [f"{figures.grid}: {len(figures.layouts)} layouts, {rounds} rounds"]
    lines.append(f"{'layout':24} {'predicted':>10} {'wall':>10} {'off':>6} {'fastest':>10} {'core s/cores':>13}   (ms)")
    for row in figures.layouts:
        wall, fastest, core = (1e3 * row[key] for key in WAYS.values())
        predicted, off = 1e3 * row["predicted_s"], row["predicted_s"] / row["wall_s"] - 1
        lines.append(f"{row['layout']:24} {predicted:10.0f} {wall:10.0f} {off:6.0%} {fastest:10.0f} {core:13.0f}")
    for what, found in figures.by.items():
        lines.append(
            f"against {what}: rank correlation {found['rank_correlation']:.3f}, first choice "
            f"{found['first_choice_slower']:.1%} slower than the best, mean error {found['mean_error']:.1%} "
            f"(bias {found['bias']:+.1%})"
        )
    return "\n".join(lines)


def summary(all_figures: Sequence[Figures]) -> str:
    """The line that is asked of each grid, and whether it is reached."""
    lines = ["grid                     rank correlation (>= 0.9)  first choice (<= 10 %)  mean error (<= 15 %)"]
    for one in all_figures:
        found = one.by[next(iter(WAYS))]
        numbers = found["rank_correlation"], found["first_choice_slower"], found["mean_error"]
        reached = numbers[0] >= 0.9 and numbers[1] <= 0.1 and numbers[2] <= ASKED_ERROR
        note = "reached" if reached else "missed"
        lines.append(f"{one.grid:24} {numbers[0]:25.3f} {numbers[1]:23.1%} {numbers[2]:21.1%}   {note}")
    return "\n".join(lines)


def write_out(folder: Path, all_figures: Sequence[Figures], loads: Sequence[float]) -> None:
    text = "\n\n".join([*map(table, all_figures), summary(all_figures)])
    print(f"\n{text}")
    (folder / "table.txt").write_text(f"{text}\n")
    document = {"date": time.strftime("%Y-%m-%d %H:%M"), "loads": list(loads), "cores": env.usable_cores()}
    (folder / "result.json").write_text(
        json.dumps(document | {"grids": [asdict(one) for one in all_figures]}, indent=1)
    )
    points = {
        one.grid: [(row["layout"], row["predicted_s"], row["wall_s"]) for row in one.layouts] for one in all_figures
    }
    title = f"Step times on CPU ranks, {sum(map(len, points.values()))} layouts ({document['date']})"
    (folder / "plot.svg").write_text(picture(points, band=ASKED_ERROR, title=title))
    print(f"in {folder}: table.txt, result.json, plot.svg, grid.json, configs/cluster/{MEASURED}.yaml")


def calibrate(folder: Path) -> None:
    """Measure this machine, unless FOLDER has that already."""
    if (folder / f"configs/cluster/{MEASURED}.yaml").exists():
        return
    began = time.monotonic()
    command = [sys.executable, "-m", "launcher.cli", "calibrate", "cluster=cpu"]
    with (folder / "calibrate.log").open("w") as said:
        subprocess.run(command, check=True, stdout=said, stderr=said, cwd=folder)
    print(f"calibrated in {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--cluster", help=f"a cluster of CPU ranks; else {MEASURED}, calibrated first")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin nothing after these")
    parser.add_argument("--portion", type=int, default=1000, help="layouts of one run")
    asked = parser.parse_args()
    folder = asked.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    loads = [os.getloadavg()[0]]
    print(f"load {loads[0]:.1f} on {env.usable_cores()} cores", flush=True)
    if not asked.cluster:
        calibrate(folder)
    os.chdir(folder)  # its configs/cluster is found
    kept, ends = Kept.of(folder / "grid.json"), time.monotonic() + 60 * asked.minutes
    wanted = {f"{model} on {ranks} ranks": (model, ranks) for model in asked.models for ranks in asked.ranks}
    grids = {}
    for name, (model, ranks) in wanted.items():
        words = (f"cluster={asked.cluster or MEASURED}", *MODELS[model])
        grids[name] = words, [Measured(layout, plan, [], []) for layout, plan in grid(words, ranks)]
    for turn, (name, (_, ranks)) in product(range(asked.rounds), wanted.items()):
        words, found = grids[name]
        failed = 0
        while (left := kept.missing(name, found, turn)) and time.monotonic() < ends and failed < MOST_FAILED:
            now = left[: asked.portion]
            try:
                with tempfile.TemporaryDirectory(prefix="regret-") as scratch:
                    log = folder / "runs.log"
                    seconds = run_round(
                        now, words, Path(scratch), ranks=ranks, steps=asked.steps, turn=turn, log=log
                    )  # fmt: skip
            except subprocess.CalledProcessError as error:
                failed += 1
                print(f"{name}: round {turn + 1} ended with {error.returncode}: see {folder}/runs.log", flush=True)
                continue
            kept.add(name, now, seconds, turn)
            loads.append(os.getloadavg()[0])
            print(f"{name}: round {turn + 1}, {len(now)} layouts in {seconds:.0f} s, load {loads[-1]:.1f}", flush=True)
    measured = {name: kept.into(name, found) for name, (_, found) in grids.items()}
    if figures := [figures_of(name, found) for name, found in measured.items() if found]:
        write_out(folder, figures, loads)


if __name__ == "__main__":
    main()
