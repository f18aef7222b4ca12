"""Gradient reduction and ZeRO traffic of a step, and the part that overlaps with compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from launcher.cost.collectives import Price
from launcher.cost.parameters import layer_tensors
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

# From one owner's message to the next one's on the same ring: a kernel of NCCL's starts, and a hop between nodes
# (BASE_LATENCY_S of InfiniBand).
NEXT_OWNER_S = 30e-6


@dataclass(frozen=True)
class Exposed:
    """Communication seconds: the exposed ones, and those that overlap with compute."""

    exposed_s: float
    hidden_s: float


def reduces_every_pass(layout: Layout) -> bool:
    """Return whether every micro-batch's gradients are reduced: with ZeRO 2 and 3, except in a pipeline."""
    return layout.sharding >= 2 and layout.pp == 1


def copies_gathers(job: Job, layout: Layout) -> bool:
    """Return whether each micro-batch copies gathered weights; on CPU ranks a unit's measured seconds have it."""
    sharded = layout.sharding == 3 and layout.pp == 1
    return sharded and job.stack.copies_gathered and job.cluster.node.gpu.kind != "cpu"


def passed_share(job: Job, layout: Layout) -> float:
    """Return the micro-batches of a step with gradients that need a separate pass over memory.

    All are copied where each is reduced; else all but the first are added to the sums, and none where products add in
    place.
    """
    if reduces_every_pass(layout):
        return 1.0
    count = layout.num_micro_batches(job.training.global_batch)
    return 0.0 if job.stack.fused_accumulation else (count - 1) / count


class Repeated(NamedTuple):
    """Seconds of communication that overlaps with each of `windows` micro-batches; `local_s`: those in which its bytes
    would pass inside a node, which slow compute down.
    """

    seconds: float
    local_s: float
    windows: float


class GradientSeconds(NamedTuple):
    """Times of a step: overlapping with forward passes, with backward passes, and after them."""

    forward: Repeated
    backward: Repeated
    after_s: float


def overlapped(communication: Repeated, window_s: float, slowdown: float) -> Exposed:
    """Overlap communication with windows of compute: the rest is exposed, and the bytes that pass slow compute down."""
    seconds, local_s, windows = communication
    hidden = min(seconds, window_s)
    slowed = slowdown * local_s * hidden / seconds if seconds else 0.0
    return Exposed(windows * (seconds - hidden + slowed), windows * hidden)


def gradient_seconds(
    price: Price, local: Price, job: Job, layout: Layout, ranks: PipelineRanks, rules: MessageRules
) -> GradientSeconds:
    """Seconds of a step's gradients and sharded weights on the rank with most parameters, and of what ranks of other
    axes sum after the step: a tied table's gradients and those of norms. `local`: if they stayed inside a node.
    """
    messages = gradient_messages(job, layout, ranks.heaviest, rules)
    pieces = message_pieces(job, layout, ranks.heaviest_stage.layers)
    shared = (*tied_table_messages(job, layout, rules), *replicated_messages(job, layout, ranks.heaviest_stage))
    after = sum(message.times * price(message) for message in shared)
    sharded = layout.zero_stage == 3  # whose replicas sum their shards whole
    price, local = (in_pieces(each, pieces, whole_sums=sharded) for each in (price, local))
    price = by_owner(price, owners(job, layout))
    after += sum(message.times * price(message) for message in messages.after)
    forward, backward = (_repeated(price, local, each) for each in (messages.forward, messages.backward))
    return GradientSeconds(forward, backward, after)


def message_pieces(job: Job, layout: Layout, layers: int) -> int:
    """Messages in which a rank's weights are gathered, or its gradients reduced, one way: as its software cuts them."""
    if layout.zero_stage == 3 or (layout.zero_stage == 2 and job.stack.gathers_every_pass):
        return max(1, layers) * job.stack.gathers_per_layer
    if job.stack.dp_messages == "per_parameter":
        return max(1, layers) * layer_tensors(job.model, joint_qkv=job.stack.joint_qkv)
    return 1


def owners(job: Job, layout: Layout) -> int:
    """Ranks that send a message each, where the software sends one for each owner of a shard."""
    return layout.shards if job.stack.dp_messages == "per_owner" and layout.zero_stage in (1, 2) else 1


def by_owner(price: Price, count: int) -> Price:
    """Return the price of messages that so many owners send one after another: NCCL's broadcast is a chain round the
    ring (src/device/broadcast.h), and an owner starts when its own rank has passed on what came before. So bytes take
    as long as in one message, and the latency of the ring counts once.
    """
    return price if count == 1 else lambda message: price(message) + (count - 1) * NEXT_OWNER_S


def in_pieces(price: Price, pieces: int, *, whole_sums: bool) -> Price:
    """Return the price of messages that are sent in so many pieces; `whole_sums`: but for all-reduces."""
    if pieces == 1:
        return price

    def whole(message: Message) -> float:
        if message.collective == "all_reduce" and whole_sums:
            return price(message)
        return pieces * price(message._replace(num_bytes=message.num_bytes / pieces))

    return whole


def _repeated(price: Price, local: Price, messages: tuple[Message, ...]) -> Repeated:
    """Return messages that overlap with as many micro-batches as the most frequent of them."""
    windows = max((message.times for message in messages), default=1.0)
    seconds, local_s = (sum(m.times * of(m) for m in messages) / windows for of in (price, local))
    return Repeated(seconds, local_s, windows)


def gradient_time(communication: GradientSeconds, *, forward_s: float, backward_s: float, slowdown: float) -> Exposed:
    """Return the exposed part, and the part that overlaps with a micro-batch's `forward_s` and `backward_s`.

    Traffic once per step overlaps with one micro-batch (Li et al. 2020, DDP), traffic per micro-batch with each;
    traffic after the step is exposed.
    """
    ahead = overlapped(communication.forward, forward_s, slowdown)
    back = overlapped(communication.backward, backward_s, slowdown)
    exposed = ahead.exposed_s + back.exposed_s + communication.after_s
    return Exposed(exposed, ahead.hidden_s + back.hidden_s)
