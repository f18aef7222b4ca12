"""Gradient reduction and ZeRO traffic of a step, and what of it hides behind compute."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.cost.collectives import all_gather_s, all_reduce_s
from launcher.cost.network import Fabric, Group
from launcher.layout import Layout
from launcher.model import Model, Training
from launcher.stacks.habits import accumulates_in_place


@dataclass(frozen=True)
class Exposed:
    """Communication seconds: those that lengthen the step, and those behind compute."""

    exposed_s: float
    hidden_s: float


@dataclass(frozen=True)
class GradientTraffic:
    """What one rank reduces and gathers in a step of `num_micro_batches`; `pipeline`: it is a pipeline's rank."""

    parameters: float
    gradient_bytes: int
    weight_bytes: int
    zero_stage: int
    num_micro_batches: int
    pipeline: bool = False


def reduces_every_pass(layout: Layout) -> bool:
    """Whether every micro-batch's gradients are reduced: with ZeRO 2 and 3, which add shards, but not in a pipeline."""
    return layout.sharding >= 2 and layout.pp == 1


def passed_share(model: Model, training: Training, layout: Layout) -> float:
    """Of a step's micro-batches, those whose gradients take a pass over memory of their own.

    All are copied where each is reduced; else all but the first are added to the sums, and none where products add in
    place.
    """
    if reduces_every_pass(layout):
        return 1.0
    count = layout.num_micro_batches(training.global_batch)
    return 0.0 if accumulates_in_place(model, training, layout) else (count - 1) / count


def overlapped(communication_s: float, window_s: float, slowdown: float) -> Exposed:
    """Communication behind a window of compute: what does not fit is exposed, and compute slows where both run."""
    hidden = min(communication_s, window_s)
    return Exposed(communication_s - hidden + slowdown * hidden, hidden)


def gradient_time(
    fabric: Fabric,
    group: Group,
    traffic: GradientTraffic,
    *,
    forward_s: float,
    backward_s: float,
    overlap: bool,
    slowdown: float,
) -> Exposed:
    """Seconds for gradients and sharded weights; `forward_s` and `backward_s` are this rank's for one micro-batch.

    ZeRO 0 reduces once a step, behind the last micro-batch's backward pass (Li et al. 2020, DDP); 1 scatters the
    gradients and gathers the weights after the step; 2 scatters every micro-batch; 3 gathers the weights for forward
    and for backward too (Rajbhandari et al. 2020, section 7).
    """
    if group.ranks < 2:
        return Exposed(0.0, 0.0)
    gradients = traffic.parameters * traffic.gradient_bytes
    weights = traffic.parameters * traffic.weight_bytes
    window = backward_s if overlap else 0.0
    if traffic.zero_stage == 0:
        return overlapped(all_reduce_s(fabric, group, gradients), window, slowdown)
    scatter, gather = all_gather_s(fabric, group, gradients), all_gather_s(fabric, group, weights)
    if traffic.zero_stage == 1 or (traffic.zero_stage == 2 and traffic.pipeline):
        reduced = overlapped(scatter, window, slowdown)
        return Exposed(reduced.exposed_s + gather, reduced.hidden_s)
    steps = traffic.num_micro_batches
    if traffic.zero_stage == 2:
        reduced = overlapped(scatter, window, slowdown)
        return Exposed(steps * reduced.exposed_s + gather, steps * reduced.hidden_s)
    ahead = overlapped(gather, forward_s, slowdown)
    if traffic.pipeline:
        last = overlapped(gather + scatter, window, slowdown)
        return Exposed(steps * ahead.exposed_s + last.exposed_s, steps * ahead.hidden_s + last.hidden_s)
    back = overlapped(gather + scatter, backward_s, slowdown)
    return Exposed(steps * (ahead.exposed_s + back.exposed_s), steps * (ahead.hidden_s + back.hidden_s))
