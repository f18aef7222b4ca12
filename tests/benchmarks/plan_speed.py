"""Speed of `launcher plan`, whole process, and of one estimate: prints, asserts nothing.

    python tests/benchmarks/plan_speed.py [--repeat N]

Wall-clock seconds depend on what else the machine does; CPU seconds (user and system, of the child process) less so.
Peak memory is the largest resident set of any child so far. The goals: under 1 s and 150 MB a plan, 200 µs an estimate.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from launcher.config.compose import load
from launcher.cost import Estimate
from launcher.cost.model import CostModel
from launcher.layout import LayoutRequest
from launcher.layout.degrees import Layout
from launcher.layout.job import Job
from launcher.planner.space import Sharding, Space

CASES = (
    ("gpt3_175b", 8, 1536),
    ("gpt3_175b", 64, 1536),
    ("gpt3_175b", 384, 1536),
    ("megatron_1t", 2048, 3072),
)


def overrides(model: str, nodes: int, batch: int) -> list[str]:
    return ["cluster=dgx_a100_80g", f"cluster.num_nodes={nodes}", f"model={model}", f"train.global_batch={batch}"]


def plan_once(model: str, nodes: int, batch: int) -> dict[str, float]:
    """One `launcher plan` in a process of its own."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "launcher.cli", "plan", *overrides(model, nodes, batch), "output=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    document = json.loads(done.stdout)
    return {
        "wall_s": wall,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mib": after.ru_maxrss / 1024,
        "search_s": document["seconds"],
        "searched": document["searched"],
    }


def _layouts(space: Space) -> Iterator[Layout]:
    """Yield every layout with ZeRO-1 and degrees that divide the batch."""
    for degrees in space.degrees():
        if space.job.training.global_batch % degrees.dp:
            continue
        for micro_batch, order in product(space.micro_batches(degrees), space.axis_orders(degrees)):
            for pass_config, schedule in product(
                space.pass_configs(degrees, micro_batch), space.schedules(degrees, micro_batch)
            ):
                yield space.layout(degrees, pass_config, schedule, sharding=Sharding(1), axis_order=order)


def estimate_us(job: Job, *, repeat: int, count: int = 2000) -> tuple[float, float]:
    """CPU microseconds of one estimate: with nothing kept from others, and among many that share parts."""
    layouts = list(_layouts(Space(job, LayoutRequest())))
    layouts = layouts[:: max(1, len(layouts) // count)]
    alone, shared = [], []
    for _ in range(repeat):
        alone.append(_mean_us(layouts[:200], lambda layout: CostModel(job).estimate(layout)))
        shared.append(_mean_us(layouts, CostModel(job).estimate))
    return min(alone), min(shared)


def _mean_us(layouts: list[Layout], estimate: Callable[[Layout], Estimate]) -> float:
    started = time.process_time()
    for layout in layouts:
        estimate(layout)
    return (time.process_time() - started) / len(layouts) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="of each measurement; the fastest counts")
    repeat = parser.parse_args().repeat
    print(f"{'model':12} {'nodes':>5} {'layouts':>11} {'wall s':>7} {'cpu s':>6} {'search s':>8} {'peak MiB':>8}")
    for model, nodes, batch in CASES:
        runs = [plan_once(model, nodes, batch) for _ in range(repeat)]
        best = {key: min(run[key] for run in runs) for key in runs[0]}
        print(
            f"{model:12} {nodes:5} {int(best['searched']):11,} {best['wall_s']:7.2f} {best['cpu_s']:6.2f} "
            f"{best['search_s']:8.2f} {best['peak_mib']:8.0f}",
            flush=True,
        )
    alone, shared = estimate_us(load(overrides(*CASES[1])).job, repeat=repeat)
    print(f"one estimate, CPU: {alone:.0f} µs alone, {shared:.0f} µs among others of a search")


if __name__ == "__main__":
    main()
