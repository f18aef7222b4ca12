"""The recipes that calibrate a cluster, run here one after another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster import Cluster
from launcher.config.compose import load
from launcher.console import notify
from launcher.errors import JobFailed, LauncherError
from launcher.planner import write_plan
from launcher.planner.build import make_plan

MODEL = "gpt_tiny"  # that the engine's seconds are measured with
DEEPER = 3  # times as many layers in one trial, which tells a layer's seconds from a micro-batch's


@dataclass(frozen=True)
class RecipeRun:
    """One run of a recipe."""

    recipe: str
    overrides: tuple[str, ...]


def measure_here(cluster: Cluster, overrides: Sequence[str], folder: Path) -> list[Path]:
    """Run what `cluster` needs on this machine; returns the run folders. Raises JobFailed where one fails."""
    if cluster.num_nodes > 1:
        raise LauncherError(
            f"{cluster.name} has {cluster.num_nodes} nodes, and this measures one machine: run the recipes "
            "collectives, gemm, memory and storage there with `launcher submit`, then `launcher calibrate RUN…`"
        )
    found = []
    for step in steps_for(cluster, overrides, folder):
        run_dir = folder / step.recipe
        notify(f"measuring: recipe {step.recipe}")
        words = [f"recipe={step.recipe}", "tracking=none", f"run_dir={run_dir}", *overrides, *step.overrides]
        if run_launcher("run", words):
            raise JobFailed(f"the recipe {step.recipe} failed, so that nothing is written: see above")
        found.append(run_dir)
    return found


def run_launcher(command: str, words: Sequence[str]) -> int:
    """A command of the launcher in a process of its own, which says on stderr what it does; returns its exit code.

    Ctrl-C reaches it too: it ends its ranks, and is waited for.
    """
    argv = [sys.executable, "-P", "-m", "launcher.cli", command, *words]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def steps_for(cluster: Cluster, overrides: Sequence[str], folder: Path) -> Iterator[RecipeRun]:
    """Products, memory, storage; groups of two, of all and in between; on CPUs the engine's own seconds too."""
    ranks = cluster.max_ranks
    on_cpu = cluster.node.gpu.kind == "cpu"
    yield RecipeRun("gemm", (f"recipe.squares=[{'256,512,1024' if on_cpu else '4096,8192'}]", *_attention(cluster)))
    yield RecipeRun("memory", ())
    yield RecipeRun("storage", ("recipe.bytes=8388608",) if on_cpu else ())
    if ranks > 1:
        tp = 2 if ranks % 2 == 0 else 1
        sizes = ("recipe.sizes=64:4M:16",) if on_cpu else ()  # to beyond the gradients of a small model
        yield RecipeRun("collectives", (f"layout.tp={tp}", "layout.pp=1", f"layout.dp={ranks // tp}", *sizes))
    if on_cpu and ranks > 1:
        write_trials(cluster, overrides, folder / "trials")
        more = (f"recipe.trials={folder / 'trials'}", "recipe.steps=6", "recipe.patience=1000", f"model={MODEL}")
        yield RecipeRun("tune", (*more, *_pinned(ranks, 1, 1, 0, 1)))


def _attention(cluster: Cluster) -> tuple[str, ...]:
    return () if cluster.node.gpu.kind == "cpu" else ("recipe.sequences=[2048,8192]",)


def write_trials(cluster: Cluster, overrides: Sequence[str], folder: Path) -> None:
    """Plans in which each of the engine's seconds counts for much, as files."""
    folder.mkdir(parents=True)
    ranks = cluster.max_ranks
    wanted = [(1, 1, 0, 1, 1), (1, 1, 1, 1, 1), (1, 1, 3, 1, 1), (1, 1, 0, 2, 1), (1, 1, 0, 1, DEEPER)]
    wanted += [(2, 1, 0, 1, 1), (2, 1, 1, 1, 1), (1, 2, 0, 1, 1), (1, 2, 1, 1, 1)] if ranks % 2 == 0 else []
    for number, (tp, pp, zero, micro_batch, deeper) in enumerate(wanted):
        words = [*overrides, f"model={MODEL}", "recipe=gpt", *_pinned(ranks, tp, pp, zero, micro_batch)]
        layers = deeper * load(words).job.model.layers
        words.append(f"model.layers={layers}")
        settings = load(words)
        write_plan(make_plan(settings.job, settings.request, settings.run_options), folder / f"{number:03d}.json")


def _pinned(ranks: int, tp: int, pp: int, zero: int, micro_batch: int) -> tuple[str, ...]:
    return (
        f"layout.tp={tp}", f"layout.pp={pp}", f"layout.dp={ranks // tp // pp}", f"layout.zero_stage={zero}",
        f"layout.micro_batch={micro_batch}", "layout.recompute=none", "layout.sequence_parallel=false",
        f"train.global_batch={2 * ranks}",
    )  # fmt: skip
