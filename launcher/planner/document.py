"""The document of `launcher plan output=json`; its names are a public contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from launcher import __version__
from launcher.cost import Estimate
from launcher.layout import Layout, Placement, RankGrid
from launcher.layout.job import Job
from launcher.planner.record import Plan
from launcher.planner.result import SearchResult
from launcher.schema import to_plain


def plans_document(result: SearchResult, why: Sequence[Sequence[str]], *, seconds: float) -> dict[str, Any]:
    """Return `plans`, best first, with their reasons, counts of rejected layouts by reason, the number considered, and
    the job.
    """
    plans = [
        {"layout": layout_data(candidate.layout), **estimate_data(candidate.estimate), "why": list(reasons)}
        for candidate, reasons in zip(result.candidates, why, strict=True)
    ]
    counts = {"rejected": dict(result.rejected), "searched": result.searched, "seconds": seconds}
    placed = placement_data(result.job, result.best.layout)
    return {"plans": plans, **counts, **job_data(result.job), "placement": placed}


def plan_document(plan: Plan) -> dict[str, Any]:
    """As `plans_document`, for one existing plan: nothing is searched or rejected."""
    one = {"layout": layout_data(plan.layout), **plan.estimate, "why": list(plan.why)}
    placed = placement_data(plan.job, plan.layout)
    return {"plans": [one], "rejected": {}, "searched": 0, "seconds": 0.0, **job_data(plan.job), "placement": placed}


def placement_data(job: Job, layout: Layout) -> dict[str, Any]:
    """Where ranks are: nodes, ranks of each, the order of axes, and the slowest link that an axis crosses."""
    placement = Placement(job.cluster, RankGrid.of(layout))
    axes = [axis for axis in ("tp", "cp", "dp", "pp") if layout.degree(axis) > 1]
    groups = {axis: placement.axis_link(axis).name.lower() for axis in axes}
    counts = {"num_nodes": placement.num_nodes, "ranks_per_node": placement.ranks_per_node}
    return {**counts, "axis_order": layout.axis_order, "groups": groups}


def job_data(job: Job) -> dict[str, Any]:
    """Return the job: cluster, model and stack as in plan.json, the batch of a step, the launcher's version."""
    sequences, length = job.training.global_batch, job.model.seq_len
    batch = {"global_batch": sequences, "seq_len": length, "tokens": sequences * length, "dtype": job.training.dtype}
    named = {"cluster": job.cluster, "model": job.model, "stack": job.stack}
    return {**{name: to_plain(value) for name, value in named.items()}, "batch": batch, "version": __version__}


def layout_data(layout: Layout) -> dict[str, Any]:
    """Return every key of a resolved layout as plain data."""
    return {**asdict(layout), "layer_split": list(layout.layer_split)}


def estimate_data(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate under its public names, as plain data; None: unknown."""
    data = {field.name: getattr(estimate, field.name) for field in fields(estimate)}
    return (
        data
        | {"memory": dict(estimate.memory), "time": dict(estimate.time)}
        | {"step_time_interval_s": list(estimate.step_time_interval_s)}
    )
