"""Gradient reduction and ZeRO traffic of a step, and the part that overlaps with compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from launcher.cost.collectives import Price
from launcher.cost.ranks import PipelineRanks
from launcher.cost.traffic import (
    Message,
    MessageRules,
    gradient_messages,
    replicated_messages,
    tied_table_messages,
)
from launcher.layout import Layout
from launcher.layout.job import Job


@dataclass(frozen=True)
class Exposed:
    """Communication seconds: the exposed ones, and those that overlap with compute."""

    exposed_s: float
    hidden_s: float


def reduces_every_pass(layout: Layout) -> bool:
    """Return whether every micro-batch's gradients are reduced: with ZeRO 2 and 3, except in a pipeline."""
    return layout.sharding >= 2 and layout.pp == 1


def passed_share(job: Job, layout: Layout) -> float:
    """Return the micro-batches of a step with gradients that need a separate pass over memory.

    All are copied where each is reduced; else all but the first are added to the sums, and none where products add in
    place.
    """
    if reduces_every_pass(layout):
        return 1.0
    count = layout.num_micro_batches(job.training.global_batch)
    return 0.0 if job.stack.fused_accumulation else (count - 1) / count


def overlapped(communication_s: float, window_s: float, slowdown: float) -> Exposed:
    """Overlap communication with a window of compute: the rest is exposed, and compute slows down during overlap."""
    hidden = min(communication_s, window_s)
    return Exposed(communication_s - hidden + slowdown * hidden, hidden)


class Repeated(NamedTuple):
    """Seconds of communication that overlaps with each of `windows` micro-batches."""

    seconds: float
    windows: float


class GradientSeconds(NamedTuple):
    """Times of a step: overlapping with forward passes, with backward passes, and after them."""

    forward: Repeated
    backward: Repeated
    after_s: float


def gradient_seconds(
    price: Price, job: Job, layout: Layout, ranks: PipelineRanks, rules: MessageRules
) -> GradientSeconds:
    """Seconds of a step's gradients and sharded weights on the rank with most parameters, and of what ranks of other
    axes sum after the step: a tied table's gradients and those of norms.
    """
    messages = gradient_messages(job, layout, ranks.heaviest, rules)
    shared = (*tied_table_messages(job, layout, rules), *replicated_messages(job, layout, ranks.heaviest_stage))
    after = sum(message.times * price(message) for message in (*messages.after, *shared))
    return GradientSeconds(_repeated(price, messages.forward), _repeated(price, messages.backward), after)


def _repeated(price: Price, messages: tuple[Message, ...]) -> Repeated:
    """Return messages that overlap with as many micro-batches as the most frequent of them."""
    windows = max((message.times for message in messages), default=1.0)
    return Repeated(sum(message.times * price(message) for message in messages) / windows, windows)


def gradient_time(communication: GradientSeconds, *, forward_s: float, backward_s: float, slowdown: float) -> Exposed:
    """Return the exposed part, and the part that overlaps with a micro-batch's `forward_s` and `backward_s`.

    Traffic once per step overlaps with one micro-batch (Li et al. 2020, DDP), traffic per micro-batch with each;
    traffic after the step is exposed.
    """
    ahead = overlapped(communication.forward.seconds, forward_s, slowdown)
    back = overlapped(communication.backward.seconds, backward_s, slowdown)
    aheads, backs = communication.forward.windows, communication.backward.windows
    exposed = aheads * ahead.exposed_s + backs * back.exposed_s + communication.after_s
    return Exposed(exposed, aheads * ahead.hidden_s + backs * back.hidden_s)
