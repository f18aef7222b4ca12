"""What several targets ask of a plan."""

from __future__ import annotations

from launcher.layout import Layout
from launcher.planner.options import TrainOptions
from launcher.planner.record import Plan


def replicas(plan: Plan) -> int:
    """How many groups of ranks hold the same shards: 1 where ZeRO shards over all of dp × cp, or not at all."""
    return plan.layout.replicas if plan.layout.sharding else 1


def overlaps_gradients(plan: Plan) -> bool:
    """Whether gradients are reduced behind the backward pass."""
    return plan.job.stack.overlap_grad_reduce


def reduces_in_fp32(plan: Plan) -> bool:
    """Whether gradients are held and reduced in fp32."""
    return plan.job.stack.reduces_in(plan.job.training) == "fp32"


def recompute_form(layout: Layout) -> str:
    """What is recomputed: none, selective (the attention core), op or full."""
    return layout.recompute


def recomputed_layers(plan: Plan) -> int | None:
    """Layers of each stage that are recomputed; None for all of them."""
    return None


def steps(plan: Plan) -> int:
    """Steps of the whole training: of `tokens=` where it is given, else `train.steps`."""
    tokens = plan.config.get("tokens")
    if not tokens:
        return TrainOptions.from_config(plan.config["train"]).steps
    return max(1, round(float(tokens) / (plan.job.training.global_batch * plan.job.model.seq_len)))


def recomputes_some(layout: Layout) -> bool:
    """Whether some layers are recomputed and others are not."""
    return False
