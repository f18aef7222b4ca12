"""Lower bounds of step time and memory, cheap enough for every layout of a search; none exceeds the estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from launcher.cost.layer import LayerShape
from launcher.cost.memory import expert_shards, state_bytes
from launcher.cost.model import CostModel
from launcher.cost.pipeline import in_flight
from launcher.layout import Layout


@dataclass(frozen=True, slots=True)
class PassTime:
    """Seconds of one micro-batch, forward and backward together: of a layer, of embedding and head, of the host.

    `weight_s` and `head_weight_s` are upper bounds of the weight gradients' time in a layer and in the head.
    """

    layer_s: float
    embedding_s: float
    head_s: float
    host_s: float
    weight_s: float = inf
    head_weight_s: float = inf


@dataclass(frozen=True, slots=True)
class PassMemory:
    """Bytes of one micro-batch on one rank: what a layer keeps, and what is live only while it runs."""

    stored: float
    working: float


@dataclass(frozen=True, slots=True)
class Stages:
    """Layers of the first, the last and the fullest of `pp` pipeline ranks, `total` in all."""

    pp: int
    first: int
    last: int
    most: int
    total: int


def pass_time(model: CostModel, layout: Layout) -> PassTime:
    """Return bounds by micro batch, tp, cp, ep and their groups, recomputation and sequence parallelism only."""
    embedding, head = model.end_costs(layout)
    layer = model.layer_cost(layout)
    return PassTime(
        layer.total_s,
        embedding.total_s,
        head.total_s,
        model.constants.host_micro_batch_s,
        layer.weight_s,
        head.weight_s,
    )


def least(times: Sequence[PassTime]) -> PassTime:
    """Return the minimum of each part: the best order for a layer may not be the best for embedding and head."""
    return PassTime(
        min(time.layer_s for time in times),
        min(time.embedding_s for time in times),
        min(time.head_s for time in times),
        min(time.host_s for time in times),
        max(time.weight_s for time in times),
        max(time.head_weight_s for time in times),
    )


def compute_time(model: CostModel, shape: LayerShape) -> PassTime:
    """Return the same without collectives, norms, embedding and head: a lower bound of `pass_time` for this shape."""
    return PassTime(model.compute_s(shape), 0.0, 0.0, model.constants.host_micro_batch_s)


def pass_memory(model: CostModel, layout: Layout) -> PassMemory:
    """Return bounds that depend only on micro batch, tp, cp, ep, recomputation and sequence parallelism."""
    found = model.activations(layout)
    return PassMemory(found.stored, found.working)


def stages_of(model: CostModel, layout: Layout) -> Stages:
    layers = model.rank_layers(layout)
    return Stages(layout.pp, layers[0], layers[-1], max(layers), sum(layers))


def busiest_s(time: PassTime, stages: Stages) -> float:
    """Seconds of one micro-batch on the busiest rank, forward and backward, without sends."""
    layer, ends = time.layer_s, (time.embedding_s, time.head_s)
    if stages.pp == 1:
        return stages.total * layer + sum(ends) + time.host_s
    return time.host_s + max(stages.first * layer + ends[0], stages.last * layer + ends[1], stages.most * layer)


def step_time_s(
    time: PassTime,
    stages: Stages,
    *,
    busiest: float,
    schedule: str,
    virtual_stages: int,
    num_micro_batches: int,
    sends_s: float = 0.0,
) -> float:
    """Return a lower bound of a step's seconds: the busiest rank's work, then each other rank once to fill and drain.

    `sends_s`: a rank's sends for a micro-batch, forward and backward. Excluded: gradients and sharded weights, the
    optimizer.
    """
    if stages.pp == 1:
        return num_micro_batches * (busiest + sends_s)
    others = stages.total * time.layer_s + time.head_s + time.embedding_s + stages.pp * time.host_s - busiest
    others += (stages.pp - 1) * sends_s
    if schedule == "zb_h1":  # the weight gradients of other micro-batches fill the wait
        fewest = min(stages.first, stages.last, stages.most)
        weights = (stages.total - fewest) * time.weight_s + time.head_weight_s
        return num_micro_batches * (busiest + sends_s) + max(0.0, others - 2 * weights)
    return num_micro_batches * (busiest + sends_s) + others / virtual_stages


def gradients_s(model: CostModel, layout: Layout) -> tuple[float, float]:
    """Return the seconds that gradient and sharded weight traffic adds to a step: without and with full overlap."""
    unhidden = model.gradients(layout, forward_s=0.0, backward_s=0.0)
    hidden = model.gradients(layout, forward_s=inf, backward_s=inf)
    return unhidden.exposed_s, hidden.exposed_s


def exposed_gradients_s(gradients: tuple[float, float], *, zero_stage: int, busiest: float, count: int) -> float:
    """Return the exposed seconds of that traffic: ZeRO 0 and 1 overlap with one micro-batch, 2 and 3 with each of
    `count`.
    """
    unhidden, hidden = gradients
    return max(hidden, unhidden - (busiest if zero_stage < 2 else count * busiest))


def held_by_first_rank(stages: Stages, *, schedule: str, virtual_stages: int, num_micro_batches: int) -> float:
    """Return the peak number of micro-batches with activations on the first rank; no rank has more."""
    return in_flight(
        schedule, stage=0, num_stages=stages.pp, num_micro_batches=num_micro_batches, virtual_stages=virtual_stages
    )


def activation_bytes(memory: PassMemory, stages: Stages, held: float) -> float:
    """Bytes of activations on the first rank when it holds those of `held` micro-batches."""
    return memory.stored * stages.first * held + memory.working


def state_bytes_of_first_rank(model: CostModel, layout: Layout) -> float:
    """Bytes of parameters, gradients and optimizer states on the first rank."""
    parameters = model.parameters(layout)[0]
    total = 0.0
    for count, shards in (
        (parameters.dense, layout.shards),
        (parameters.experts, expert_shards(layout)),
    ):
        state = state_bytes(model.job, layout, shards=shards)
        total += count * (state.weights + state.gradients + state.optimizer)
    return total
