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
WIDER = 2  # times as wide in one trial, which tells what grows with the width


@dataclass(frozen=True)
class RecipeRun:
    """One run of a recipe, in a folder of its name and this addition."""

    recipe: str
    overrides: tuple[str, ...]
    addition: str = ""


@dataclass(frozen=True)
class TrialShape:
    """A layout that is tried, and how much deeper and wider than MODEL its model is."""

    tp: int = 1
    pp: int = 1
    zero: int = 0
    micro_batch: int = 1
    deeper: int = 1
    wider: int = 1


ALL_RANKS = (
    TrialShape(), TrialShape(zero=1), TrialShape(zero=3), TrialShape(micro_batch=2), TrialShape(deeper=DEEPER),
    TrialShape(wider=WIDER), TrialShape(wider=WIDER, zero=3), TrialShape(tp=2), TrialShape(tp=2, zero=1),
    TrialShape(pp=2), TrialShape(pp=2, zero=1),
)  # fmt: skip
# Of a job on half the ranks fewer share a core, and a group may be alone on the machine.
HALF_THE_RANKS = (
    TrialShape(), TrialShape(zero=1), TrialShape(tp=2), TrialShape(tp=4), TrialShape(wider=WIDER, tp=2),
)  # fmt: skip


def measure_here(cluster: Cluster, overrides: Sequence[str], folder: Path) -> list[Path]:
    """Run what `cluster` needs on this machine; returns the run folders. Raises JobFailed where one fails."""
    if cluster.num_nodes > 1:
        raise LauncherError(
            f"{cluster.name} has {cluster.num_nodes} nodes, and this measures one machine: run the recipes "
            "collectives, gemm, memory and storage there with `launcher submit`, then `launcher calibrate RUN…`"
        )
    found = []
    for step in steps_for(cluster, overrides, folder):
        run_dir = folder / f"{step.recipe}{step.addition}"
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
        yield _trials_of(ALL_RANKS, ranks, overrides, folder / "trials")
    if on_cpu and ranks % 2 == 0 and ranks // 2 > cluster.node.cores > 0:
        yield _trials_of(HALF_THE_RANKS, ranks // 2, overrides, folder / "trials-half", addition="-half")


def _trials_of(
    shapes: Sequence[TrialShape], ranks: int, overrides: Sequence[str], folder: Path, *, addition: str = ""
) -> RecipeRun:
    """Steps under each of these layouts, in the same warm ranks."""
    words = (*overrides, f"cluster.node.num_gpus={ranks}")
    write_trials(shapes, ranks, words, folder)
    more = (f"recipe.trials={folder}", "recipe.steps=6", "recipe.patience=1000", f"model={MODEL}")
    return RecipeRun("tune", (*more, words[-1], *_pinned(ranks, TrialShape())), addition)


def _attention(cluster: Cluster) -> tuple[str, ...]:
    return () if cluster.node.gpu.kind == "cpu" else ("recipe.sequences=[2048,8192]",)


def write_trials(shapes: Sequence[TrialShape], ranks: int, overrides: Sequence[str], folder: Path) -> None:
    """Plans in which each of the engine's seconds counts for much, as files: of the layouts that so many ranks have."""
    folder.mkdir(parents=True)
    usual = load([*overrides, f"model={MODEL}"]).job.model
    for number, shape in enumerate(shape for shape in shapes if ranks % (shape.tp * shape.pp) == 0):
        words = [*overrides, f"model={MODEL}", "recipe=gpt", *_pinned(ranks, shape)]
        words += [f"model.layers={shape.deeper * usual.layers}", f"model.hidden={shape.wider * usual.hidden}"]
        settings = load(words)
        write_plan(make_plan(settings.job, settings.request, settings.run_options), folder / f"{number:03d}.json")


def _pinned(ranks: int, shape: TrialShape) -> tuple[str, ...]:
    return (
        f"layout.tp={shape.tp}", f"layout.pp={shape.pp}", f"layout.dp={ranks // shape.tp // shape.pp}",
        f"layout.zero_stage={shape.zero}", f"layout.micro_batch={shape.micro_batch}", "layout.recompute=none",
        "layout.sequence_parallel=false", f"train.global_batch={2 * ranks}",
    )  # fmt: skip
