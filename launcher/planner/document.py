"""The document of `launcher plan output=json`: its names are a public contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from launcher.cost import Estimate
from launcher.layout import Layout
from launcher.planner.result import SearchResult


def plans_document(result: SearchResult, why: Sequence[Sequence[str]], *, seconds: float) -> dict[str, Any]:
    """`plans` best first with the reasons of each, counts of the rejected by reason, how many were considered."""
    plans = [
        {"layout": layout_data(candidate.layout), **estimate_data(candidate.estimate), "why": list(reasons)}
        for candidate, reasons in zip(result.candidates, why, strict=True)
    ]
    return {"plans": plans, "rejected": dict(result.rejected), "searched": result.searched, "seconds": seconds}


def layout_data(layout: Layout) -> dict[str, Any]:
    """Every key of a layout, resolved, as plain data."""
    return {**asdict(layout), "layer_split": list(layout.layer_split)}


def estimate_data(estimate: Estimate) -> dict[str, Any]:
    """An estimate under its public names, as plain data; None where something is not known."""
    data = {field.name: getattr(estimate, field.name) for field in fields(estimate)}
    return (
        data
        | {"memory": dict(estimate.memory), "time": dict(estimate.time)}
        | {"step_time_interval_s": list(estimate.step_time_interval_s)}
    )
