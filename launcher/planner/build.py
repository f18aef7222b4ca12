"""From a job and what its user pinned to the plan that is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher.cost.model import CostModel
from launcher.layout import LayoutRequest
from launcher.layout.engines import recipe_problems
from launcher.layout.hybrid import shard_size
from launcher.layout.job import Job
from launcher.planner.document import estimate_data
from launcher.planner.explain import reasons
from launcher.planner.record import Plan
from launcher.planner.search import search
from launcher.planner.space import Refuse

RECIPE_REDUCES_IN = "fp32"
COMPARED = 3  # how many of the next best the reasons speak about


def make_plan(
    job: Job, request: LayoutRequest, config: Mapping[str, Any], *, to_run: bool = False, refuse: Refuse | None = None
) -> Plan:
    """The best plan of a search; raises InputError where nothing is legal and NoLayoutFits where nothing fits.

    With `to_run` only layouts count that the recipe can train, if the job is one of ours. `refuse` leaves out more.
    """
    ours = to_run and config.get("script") is None and (config.get("recipe") or {}).get("name") == "gpt"
    job = _as_the_recipe_trains(job) if ours else job
    model = CostModel(job)
    result = search(job, request, top=COMPARED, model=model, refuse=recipe_problems if ours else refuse)
    best = result.best
    plan = Plan(job, best.layout, estimate_data(best.estimate), reasons(result, model)[0], config)
    if ours and plan.layout.zero_stage and (config.get("train") or {}).get("hybrid_shard"):
        shard_size(plan.layout, plan.placement)  # refuses what the ranks would
    return plan


def _as_the_recipe_trains(job: Job) -> Job:
    """The job with what the gpt recipe does where the user left the choice open.

    It reduces gradients in fp32, adds them up in a pass over memory, and recomputes with PyTorch's checkpointing.
    """
    chosen = job.training
    training = replace(
        chosen,
        grad_reduce_dtype=chosen.grad_reduce_dtype or RECIPE_REDUCES_IN,
        fused_accumulation=bool(chosen.fused_accumulation),
        recompute_stops_early=chosen.recompute_stops_early is not False,
    )
    return replace(job, training=training)
