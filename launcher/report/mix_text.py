"""The packing of small jobs on GPUs that MIG cuts, as text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from launcher.cluster import Cluster
from launcher.planner.mix import CutGpu, SmallJob
from launcher.report.table import LEFT, RIGHT, draw

WHOLE = "the whole GPU"
MOST_COMMANDS = 16


def mix_lines(gpus: Sequence[CutGpu], cluster: Cluster, *, width: int | None = None) -> list[str]:
    """GPUs that are cut alike are one row; below, the commands that cut them. `width`: of a terminal."""
    rows, commands, first = [], [], 0
    for _, alike in groupby(gpus, key=_what):
        same = list(alike)
        last = first + len(same) - 1
        number = f"{first}" if first == last else f"{first}–{last}"
        for place, (name, profile, jobs) in enumerate(_slices(same[0])):
            speed = f"{jobs[0].tokens_per_s:,.0f}"
            rows.append(
                [number if place == 0 else "", profile, f"{len(jobs)} × {name}", jobs[0].best.layout.brief(), speed]
            )
        commands += [command for index, gpu in enumerate(same, first) if (command := gpu.command(index))]
        first = last + 1
    node = cluster.node
    need = f"{len(gpus)} {node.gpu.name}" + (
        f" of the {cluster.num_gpus} of {cluster.name}" if cluster.num_gpus > 1 else ""
    )
    columns = {"GPU": LEFT, "slice": LEFT, "jobs": LEFT, "layout": LEFT, "tokens/s each": RIGHT}
    lines = [f"{sum(len(gpu.jobs) for gpu in gpus)} jobs on {need}", *draw(columns, rows, width=width)]
    if len(gpus) > cluster.num_gpus:
        lines.append(f"more GPUs than {cluster.name} has: the rest waits for a slice, or takes more nodes")
    if len(commands) > MOST_COMMANDS:
        commands = [*commands[:MOST_COMMANDS], f"… and {len(commands) - MOST_COMMANDS} more (output=json has all)"]
    return lines + (
        ["cut them, with MIG mode on (nvidia-smi -mig 1), by", *(f"  {each}" for each in commands)] if commands else []
    )


def _what(gpu: CutGpu) -> tuple[tuple[str, str], ...]:
    return tuple((job.name, job.profile.name if job.profile else WHOLE) for job in gpu.jobs)


def _slices(gpu: CutGpu) -> list[tuple[str, str, list[SmallJob]]]:
    """Jobs alike, with their model and profile."""
    found: dict[tuple[str, str], list[SmallJob]] = {}
    for job, what in zip(gpu.jobs, _what(gpu), strict=True):
        found.setdefault(what, []).append(job)
    return [(name, profile, jobs) for (name, profile), jobs in found.items()]
