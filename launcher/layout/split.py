"""Layers over pipeline stages, balanced by cost: the embedding and the head weigh something too."""

from __future__ import annotations

from launcher.model import Model

SHORT_ENDS = 2  # the first and the last


def interleaves(layers: int, *, num_stages: int) -> bool:
    """Whether layers spread over virtual stages evenly, but for one layer less at the ends.

    So Llama 3 405B has 126 layers on 16 pipeline ranks (Llama Team 2024, section 3.3.2): the embedding and the head
    take the place of a layer.
    """
    short = -layers % num_stages
    return short == 0 or (short <= SHORT_ENDS and layers > num_stages)


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


def split_by_cost(layers: int, *, num_stages: int, first_extra: float, last_extra: float) -> tuple[int, ...]:
    """The split whose fullest stage costs least, every stage at least one layer; needs `num_stages` ≤ `layers`.

    `first_extra` and `last_extra` are what the embedding and the head cost, in layers. Of equally good splits the one
    that leaves most to the middle stages.
    """
    extras = [0.0] * num_stages
    extras[0] += first_extra
    extras[-1] += last_extra
    counts = [1] * num_stages
    middle_first = sorted(range(num_stages), key=lambda stage: (stage in (0, num_stages - 1), stage))
    for _ in range(layers - num_stages):
        counts[min(middle_first, key=lambda stage: counts[stage] + extras[stage])] += 1
    return tuple(counts)
