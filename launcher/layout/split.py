"""Layers over pipeline stages, balanced by cost: the embedding and the head weigh something too."""

from __future__ import annotations

from launcher.model import Model


def head_weight(model: Model) -> float:
    """Cost of the output projection, in layers (by forward FLOPs)."""
    return model.logits_forward_flops(tokens=1) / model.layer_forward_flops(tokens=1)


def balanced_split(model: Model, *, num_stages: int) -> tuple[int, ...]:
    """Layers of each stage, in pipeline order; sums to the model's layers, every stage at least one.

    Equal where the layers divide evenly (the last stage then carries the head on top, as everywhere in the field).
    Otherwise the stages that get one layer less are the last (it has the head), then the first (it has the
    embedding), then from the end: BLOOM's 70 layers on 12 stages give 5, 6, …, 6, 5.
    """
    base, extra = divmod(model.layers, num_stages)
    counts = [base + 1] * num_stages if extra else [base] * num_stages
    short = num_stages - extra if extra else 0
    order = [num_stages - 1, 0, *range(num_stages - 2, 0, -1)]
    for stage in order[:short]:
        counts[stage] -= 1
    return tuple(counts)
