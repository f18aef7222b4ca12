"""Wall time of a piece of a stage on one rank: device time, the host that must keep ahead of it, and its
collectives.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from launcher.cost.collectives import Price
from launcher.cost.constants import Constants
from launcher.cost.layer import LayerParts, Part
from launcher.cost.traffic import LayerMessages, Message


class Cost(NamedTuple):
    """Seconds for one micro-batch, forward and backward (with recomputation), and what of them is communication.

    `weight_s` is the part of `backward_s` that weight gradients take. `hidden_s` are tensor-parallel seconds behind
    compute.
    """

    forward_s: float
    backward_s: float
    weight_s: float = 0.0
    tp_s: float = 0.0
    cp_s: float = 0.0
    ep_s: float = 0.0
    tp_hidden_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.forward_s + self.backward_s


# Recomputation by operator keeps the results of every second product of a layer.
OP_KEPT = 0.5


class Spent(NamedTuple):
    """Seconds of a layer's messages by axis, and of waiting for the last of the groups."""

    tp_s: float = 0.0
    cp_s: float = 0.0
    ep_s: float = 0.0
    tp_wait_s: float = 0.0
    cp_wait_s: float = 0.0
    ep_wait_s: float = 0.0

    @property
    def moving_s(self) -> float:
        return self.tp_s + self.cp_s + self.ep_s

    @property
    def waiting_s(self) -> float:
        return self.tp_wait_s + self.cp_wait_s + self.ep_wait_s


def spent(price: Price, constants: Constants, messages: Iterable[Message]) -> Spent:
    """Seconds of `messages`. Every other rank of a group may be the late one, on its host too."""
    if not messages:
        return Spent()
    moving, waiting = {"tp": 0.0, "cp": 0.0, "ep": 0.0}, {"tp": 0.0, "cp": 0.0, "ep": 0.0}
    for message in messages:
        moving[message.axis] += message.times * price(message) * constants.collective_slowdown
        waiting[message.axis] += message.times * constants.late_rank_s * (message.ranks - 1)
    return Spent(*moving.values(), *waiting.values())


def layer_cost(
    *,
    constants: Constants,
    price: Price,
    parts: LayerParts,
    messages: LayerMessages,
    recompute: str,
    hides_tp: bool,
    skipped_s: float = 0.0,
) -> Cost:
    """One layer: compute, or the host where that is slower, plus the exposed part of every collective, and the wait
    for its last rank.

    `skipped_s`: seconds at the layer's end that recomputation leaves out. `hides_tp`: collectives of the backward pass
    overlap with products.
    """
    ahead, back = spent(price, constants, messages.forward), spent(price, constants, messages.backward)
    again = spent(price, constants, messages.repeated) if recompute == "full" else Spent()
    tp_hidden = _hidden_s(parts.rest, ahead.tp_s, back.tp_s) if hides_tp else 0.0
    unhidden = tp_hidden * (1 - constants.tp_overlap_cost)
    device = parts.rest + parts.core
    forward = max(device.forward_s + ahead.moving_s, constants.host_forward_s)
    backward = max(device.backward_s + back.moving_s - unhidden, constants.host_backward_s)
    if recompute == "full":
        repeated = device.forward_s - skipped_s + again.moving_s
        backward += max(repeated, constants.host_forward_s + constants.host_checkpoint_s) + again.waiting_s
    elif recompute == "selective":
        backward += parts.core.forward_s
    elif recompute == "op":  # every second product is kept, what is between products runs again
        repeated = parts.rest.forward_s - OP_KEPT * parts.products_s
        backward += max(repeated, constants.host_forward_s + constants.host_checkpoint_s)
    back = _async(back, tp_hidden)
    each = (ahead, back, again)
    return Cost(
        forward_s=forward + ahead.waiting_s,
        backward_s=backward + back.waiting_s,
        weight_s=parts.rest.weight_s,
        tp_s=sum(one.tp_s + one.tp_wait_s for one in each) - unhidden,
        cp_s=sum(one.cp_s + one.cp_wait_s for one in each),
        ep_s=sum(one.ep_s + one.ep_wait_s for one in each),
        tp_hidden_s=tp_hidden,
    )


def blended(one: Cost, other: Cost, share: float) -> Cost:
    """The mean of two costs, `share` of it the first."""
    return Cost(*(share * a + (1 - share) * b for a, b in zip(one, other, strict=True)))


def _async(back: Spent, hidden_s: float) -> Spent:
    """Return the wait for the last rank of a collective next to a product, without the part that is hidden."""
    return back._replace(tp_wait_s=back.tp_wait_s * (1 - hidden_s / back.tp_s)) if back.tp_s else back


def _hidden_s(products: Part, ahead_s: float, back_s: float) -> float:
    """Seconds of the backward pass's tensor-parallel collectives next to its products: sums of the input's gradients
    with those of the weights, and what is gathered again with those of the inputs (Megatron-LM,
    tensor_parallel/layers.py, LinearWithGradAccumulationAndAsyncCommunication).
    """
    again_s = max(0.0, back_s - ahead_s)
    return min(back_s - again_s, products.weight_s) + min(again_s, products.backward_s - products.weight_s)


def part_cost(part: Part, *, forward_collective_s: float, backward_collective_s: float) -> Cost:
    """An end of the pipeline (embedding, head) with its collectives."""
    return Cost(
        part.forward_s + forward_collective_s,
        part.backward_s + backward_collective_s,
        part.weight_s,
        tp_s=forward_collective_s + backward_collective_s,
    )
