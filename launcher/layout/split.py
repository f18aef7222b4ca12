"""Split layers over pipeline stages, balanced by cost, including that of the embedding and the head."""

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
    """Return the layers of each stage, in pipeline order, at least one each; they sum to the model's layers.

    The split is equal if the layers divide evenly (the last stage then also has the head, as usual in the field).
    Otherwise one layer less goes to the last stage (it has the head), then the first (it has the embedding), then
    further ones from the end: BLOOM's 70 layers on 12 stages give 5, 6, …, 6, 5.
    """
    base, extra = divmod(model.layers, num_stages)
    counts = [base + 1] * num_stages if extra else [base] * num_stages
    short = num_stages - extra if extra else 0
    order = [num_stages - 1, 0, *range(num_stages - 2, 0, -1)]
    for stage in order[:short]:
        counts[stage] -= 1
    return tuple(counts)


def split_by_cost(layers: int, *, num_stages: int, first_extra: float, last_extra: float) -> tuple[int, ...]:
    """Return the split that minimises the most expensive stage, at least one layer each; `num_stages` ≤ `layers`.

    `first_extra` and `last_extra` are the costs of the embedding and the head, in layers. Among equally good splits,
    it is the one with most layers in the middle stages.
    """
    extras = [0.0] * num_stages
    extras[0] += first_extra
    extras[-1] += last_extra
    counts = [1] * num_stages
    middle_first = sorted(range(num_stages), key=lambda stage: (stage in (0, num_stages - 1), stage))
    for _ in range(layers - num_stages):
        counts[min(middle_first, key=lambda stage: counts[stage] + extras[stage])] += 1
    return tuple(counts)
