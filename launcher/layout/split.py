"""Split layers over pipeline stages, balanced by cost, including that of the embedding and the head."""

from __future__ import annotations

from launcher.layout.job import Job
from launcher.model import Model

SHORT_ENDS = 2  # the first and the last


def interleaves(layers: int, *, num_stages: int) -> bool:
    """Whether layers spread over virtual stages evenly, but for one layer less at the ends.

    So Llama 3 405B has 126 layers on 16 pipeline ranks (Llama Team 2024, section 3.3.2): the embedding and the head
    take the place of a layer. With a layer a stage they are alone in theirs.
    """
    return -layers % num_stages <= SHORT_ENDS and layers >= max(1, num_stages - SHORT_ENDS)


def has_split(job: Job, *, num_stages: int, virtual: bool) -> bool:
    """Whether the software can share its layers out: a stage has at least one, but for the ends of `virtual` stages."""
    layers = job.model.layers
    if virtual and not any(job.stack.pipeline_ends):
        return num_stages <= layers or interleaves(layers, num_stages=num_stages)
    return 1 <= num_stages <= layers


def default_split(job: Job, *, num_stages: int) -> tuple[int, ...]:
    """Return the layers of each stage where nothing else is said: as the training software shares them out."""
    ends = job.stack.pipeline_ends
    if num_stages > 1 and any(ends):
        return uniform_split(job.model.layers, num_stages=num_stages, ends=ends)
    return balanced_split(job.model, num_stages=num_stages)


def uniform_split(layers: int, *, num_stages: int, ends: tuple[int, int]) -> tuple[int, ...]:
    """Return layers of each stage where the embedding and the head count as `ends` layers, and the first stages get
    what is left over; at least one each.
    """
    base, extra = divmod(layers + sum(ends), num_stages)
    counts = [base + (stage < extra) for stage in range(num_stages)]
    counts[0], counts[-1] = counts[0] - ends[0], counts[-1] - ends[1]
    while min(counts) < 1:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(min(counts))] += 1
    return tuple(counts)


def balanced_split(model: Model, *, num_stages: int) -> tuple[int, ...]:
    """Return the layers of each stage, in pipeline order; they sum to the model's layers. Only the ends may be empty.

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
