"""Batches next to one that the ranks of a cluster cannot share well, and the batch that nobody chose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import gcd, log, log2

from launcher.errors import InputError, NoLayoutFits
from launcher.layout import LayoutRequest
from launcher.layout.job import Job
from launcher.layout.legality import divisors
from launcher.planner.result import Candidate
from launcher.planner.search import search
from launcher.planner.space import Refuse

NEAR = 0.05  # of the batch: what counts as near
WORTH = 0.05  # less speed lost than that is not worth another batch
# Parameters of a model, and tokens of its batch (Brown et al. 2020, table 2.1).
PUBLISHED = ((125e6, 0.5e6), (760e6, 0.5e6), (1.3e9, 1e6), (2.7e9, 1e6), (6.7e9, 2e6), (13e9, 2e6), (175e9, 3.2e6))


def near_batches(batch: int, ranks: int) -> list[int]:
    """The nearest batch below and above that shares the largest factor with `ranks`, where that is larger than what
    `batch` shares.
    """
    found: dict[bool, int] = {}
    for factor in sorted(divisors(ranks), reverse=True):
        if factor <= gcd(batch, ranks):
            break
        below = batch // factor * factor
        for near in (below, below + factor):
            if near and abs(near - batch) <= NEAR * batch:
                found.setdefault(near > batch, near)
    return sorted(found.values())


def better_batches(job: Job, request: LayoutRequest, best: Candidate, refuse: Refuse | None) -> Iterator[str]:
    """Say what the batch costs, and which near ones do not, where the ranks cannot share it."""
    batch, ranks = job.training.global_batch, job.cluster.max_ranks
    now = best.estimate.tokens_per_s_per_gpu * best.layout.world_size
    faster = {}
    for near in near_batches(batch, ranks):
        asked = replace(job, training=replace(job.training, global_batch=near))
        try:
            other = search(asked, request, top=1, refuse=refuse).best
        except (InputError, NoLayoutFits):
            continue
        speed = other.estimate.tokens_per_s_per_gpu * other.layout.world_size
        if now < (1 - WORTH) * speed:
            faster[near] = speed
    if faster:
        lost = 1 - now / max(faster.values())
        others = ", ".join(
            f"{near:,} trains {speed / now:.2f}× as many tokens a second" for near, speed in faster.items()
        )
        yield (
            f"train.global_batch={batch} costs {lost:.0%} of the speed, since {ranks:,} ranks cannot share it evenly: "
            f"{others}"
        )


def usual_batch(job: Job) -> int:
    """Sequences of a step of a published model of about this size, as a power of two."""
    _, tokens = min(PUBLISHED, key=lambda each: abs(log(job.model.params / each[0])))
    return int(2 ** max(0, round(log2(tokens / job.model.seq_len))))


def unchosen_batch(job: Job) -> Iterator[str]:
    """Ask for the batch where the user did not set it, with what others took."""
    usual = usual_batch(job)
    if job.cluster.node.gpu.kind == "cuda" and usual != job.training.global_batch:
        yield (
            f"train.global_batch={job.training.global_batch} is a default that nobody chose, and the plan depends on "
            f"it: set it. GPT-3 models of about the size of {job.model.name} trained on as many tokens a step as "
            f"train.global_batch={usual} has (Brown et al. 2020, table 2.1)"
        )


def with_usual_batch(job: Job) -> Job:
    """The job with the batch of published models of about its size."""
    return replace(job, training=replace(job.training, global_batch=usual_batch(job)))


def chosen_batch(job: Job) -> str:
    """Say which batch a job got that had none, and why."""
    return (
        f"train.global_batch was not set: {job.model.name} is planned with {usual_batch(job):,} sequences, as many "
        "tokens a step as GPT-3 models of about its size trained on (Brown et al. 2020, table 2.1)"
    )
