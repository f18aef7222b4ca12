"""Training in so many days: the fewest GPUs for so many tokens, and the largest model that a cluster trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import sqrt

from launcher.cluster import Cluster
from launcher.cost.model import CostModel
from launcher.errors import InputError
from launcher.layout import LayoutRequest
from launcher.layout.job import Job
from launcher.planner.compare import SECONDS_PER_DAY, Case, Comparison, Row, planned, resized
from launcher.planner.space import Refuse
from launcher.units import format_count

MOST_GPUS = 16384
FINER = (5, 6, 7)  # eighths of a size that is in time, where half of it is not
GAIN = 0.98  # of the days at half the size: more is no gain worth another doubling


def fewest_gpus(
    label: str,
    job: Job,
    request_on: Callable[[Cluster], LayoutRequest],
    *,
    tokens: float,
    days: float,
    refuse: Refuse | None = None,
) -> Row:
    """The best plan on the smallest size of the cluster that is in time: by doubling, then by eighths.

    Where none is, the fastest that was tried, with a note.
    """

    def at(size: int) -> Row | None:
        try:
            cluster = resized(job.cluster, size)
        except InputError:  # no whole nodes, or no network between them
            return None
        row = planned(Case(f"{label} × {size}", replace(job, cluster=cluster), request_on(cluster), refuse), tokens)
        return row if row.best else None

    fastest: Row | None = None
    least = _least_gpus(job, tokens=tokens, days=days)
    for size in _sizes(job, least):
        row = at(size)
        if row is None:
            continue
        if _in_time(row, days):
            smaller = (at(size * eighth // 8) for eighth in FINER if size * eighth % 8 == 0)
            return next((found for found in smaller if found and _in_time(found, days)), row)
        if fastest and fastest.days and row.days and row.days > GAIN * fastest.days:
            break
        fastest = row
    fastest = fastest or at(job.cluster.node.num_gpus)
    if fastest is None:
        return Row(label, job.cluster, job.cluster.num_gpus, None, note=f"no size up to {MOST_GPUS:,} GPUs has a plan")
    if least > MOST_GPUS:
        return replace(fastest, note=f"not in {days:g} days: {MOST_GPUS:,} GPUs would take longer at their peak rate")
    return replace(fastest, note=f"not in {days:g} days with any size that was tried: {fastest.days:,.1f} at best")


def _in_time(row: Row, days: float) -> bool:
    return row.days is not None and row.days <= days


def _least_gpus(job: Job, *, tokens: float, days: float) -> float:
    """GPUs that are in time at their peak rate; 0 where it is unknown."""
    training, model = job.training, job.model
    peak = CostModel(job).device.peak_flops
    flops = model.step_flops(sequences=training.global_batch) / (training.global_batch * model.seq_len) * tokens
    return flops / (peak * days * SECONDS_PER_DAY) if peak else 0.0


def _sizes(job: Job, least: float) -> Iterator[int]:
    """Powers of two inside a node, then whole nodes by doubling; none below `least`."""
    node = job.cluster.node
    size = 1
    while size < node.num_gpus:
        if size >= least:
            yield size
        size *= 2
    size = node.num_gpus
    while size <= MOST_GPUS:
        if size >= least:
            yield size
        size *= 2


def within_deadline(rows: Sequence[Row], *, tokens: float, days: float, what: str) -> Comparison:
    """The rows, and which of them is the smallest, the fastest and the cheapest in time."""
    ready = [row for row in rows if row.best and _in_time(row, days)]
    verdicts = []
    if ready:
        smallest = min(ready, key=lambda row: row.num_gpus)
        verdicts.append(
            f"smallest in {days:g} days: {smallest.label}, {smallest.num_gpus:,} GPUs, {smallest.days:,.1f} days"
        )
    priced = [row for row in ready if row.cost is not None]
    if priced:
        cheapest = min(priced, key=lambda row: row.cost or 0.0)
        verdicts.append(f"cheapest in {days:g} days: {cheapest.label}, ${cheapest.cost:,.0f}")
    if not ready:
        verdicts.append(
            f"none trains {tokens:,.0f} tokens in {days:g} days: more days, fewer tokens or another cluster"
        )
    return Comparison(tuple(rows), tokens, tuple(verdicts), what)


def largest_model(cases: Iterable[Case], *, tokens_per_parameter: float, days: float) -> Comparison:
    """The best plan of each model for so many tokens a parameter, and the largest model that is trained in time."""
    rows, sizes = [], {}
    for case in cases:
        params = case.job.model.params
        tokens = tokens_per_parameter * params
        named = f"{case.label}: {format_count(params)}, {format_count(tokens)} tokens"
        rows.append(planned(replace(case, label=named), tokens))
        sizes[named] = params
    ready = [row for row in rows if _in_time(row, days)]
    verdicts = [f"none of these models is trained in {days:g} days: more days, more GPUs, or fewer tokens a parameter"]
    if ready:
        best = max(ready, key=lambda row: sizes[row.label])
        # Compute is in proportion to parameters × tokens, and so to the square of the parameters.
        room = format_count(sizes[best.label] * sqrt(days / (best.days or days)))
        verdicts = [
            f"largest in {days:g} days on {best.num_gpus:,} GPUs: {best.label}, {best.days:,.1f} days; "
            f"at its speed there is time for {room} parameters"
        ]
    return Comparison(tuple(rows), None, tuple(verdicts), "model", tokens_per_parameter)
