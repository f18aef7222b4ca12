"""Facts of a plan that several targets need."""

from __future__ import annotations

from math import isclose
from typing import Any

from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.planner.habits import ALLOCATOR, Setup, Table, assumed, settings_for, setup_of
from launcher.planner.record import Plan


def with_deepspeed(job: Job) -> bool:
    """Return whether DeepSpeed trains, with or without our engine, and not FSDP or DDP."""
    return job.training.engine == "deepspeed" or job.stack.name == "deepspeed"


def replicas(plan: Plan) -> int:
    """Return the number of rank groups with the same shards: 1 if ZeRO shards over all of dp × cp, or not at all."""
    return plan.layout.replicas if plan.layout.sharding else 1


def setup(plan: Plan, *, deepspeed: bool = False) -> Setup:
    """What decides which options a tool has for the plan's habits."""
    return setup_of(plan.job, plan.layout, deepspeed=deepspeed)


def asked(plan: Plan, table: Table) -> dict[str, Any]:
    """Options by which a tool does what the plan assumes of its software; the environment is `allocator`'s."""
    found = settings_for(table, assumed(plan.job, plan.layout))
    return {name: value for name, value in found.items() if name != ALLOCATOR}


def allocator(plan: Plan, table: Table) -> dict[str, str]:
    """The variable of PyTorch's allocator, where the plan assumes one."""
    found = settings_for(table, assumed(plan.job, plan.layout))
    return {ALLOCATOR: found[ALLOCATOR]} if ALLOCATOR in found and plan.job.cluster.node.gpu.kind == "cuda" else {}


def recomputed_layers(layout: Layout) -> int | None:
    """Layers of each (virtual) stage that are recomputed; None for all of them, 0 where that is no whole number."""
    if not recomputes_some(layout):
        return None
    shares = {layout.recompute_fraction * layers for layers in layout.layer_split}
    share = shares.pop()
    return round(share) if not shares and isclose(share, round(share)) else 0


def steps(plan: Plan) -> int:
    """Steps of the whole training: of `tokens=` where it is given, else `train.steps`."""
    tokens = plan.options.tokens
    if not tokens:
        return plan.options.train.steps
    return max(1, round(float(tokens) / (plan.job.training.global_batch * plan.job.model.seq_len)))


def recomputes_some(layout: Layout) -> bool:
    """Whether some layers are recomputed and others are not."""
    return layout.recompute != "none" and layout.recompute_fraction < 1
