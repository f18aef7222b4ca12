"""Step time on CPU ranks: the work of all of them over the cores that they share, and what waiting leaves idle.

A core that one rank leaves idle is another's: a bubble costs nothing while some rank has work, and overlap wins
nothing. So ranks' core seconds are added up, collectives included: their curves hold core seconds on CPUs. Cores are
idle while fewer ranks than cores have work. A scheduler that leaves no core idle while a rank has work takes at most
work / cores + (1 - 1 / cores) · critical path (Graham 1969, "Bounds on multiprocessing timing anomalies"). How near
ranks come to that bound is measured: by `idle` of what a rank computes, by `chain` of its collectives, in which ranks
hand data on in turn. On quiet cores others fill nearly all waits; where other programs take turns, few.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from launcher.cluster import Cluster
from launcher.cluster.measured import EngineSeconds
from launcher.cost.collectives import Price
from launcher.cost.layer import LayerParts, Part
from launcher.cost.pipeline import pipeline_time
from launcher.cost.traffic import SEND, SEND_BACK, Message, MessageRules, RankStage, rank_messages
from launcher.layout import Layout
from launcher.layout.job import Job

# Core seconds of our torch engine, as `launcher calibrate cluster=cpu` found them on two EPYC cores with AVX-512 that
# eight and four ranks had for themselves (torch 2.13, 2026-11-30); it measures a machine's own. What a step takes
# more than its core seconds over cores is half of `idle` of a rank's compute and of `chain` times its collectives:
# there 0.0 to 0.1 and 0.0 to 0.8, and where much else ran on the same cores 0.6 and 2.0 to 3.5 (82 layouts).
ENGINE = EngineSeconds(
    layer_s=0.35e-3,
    micro_batch_s=4e-3,
    step_s=0.5e-3,
    unit_s=0.65e-3,
    call_s=0.07e-3,
    element_s=25e-9,
    byte_s=0.4e-9,
    idle=0.1,
    chain=0.8,
)
# Of a micro-batch's seconds: what every stage has (the schedule, autograd's start), and what the first and the last
# one have, by operators of embedding, head and loss. Four stages use 1.3 ms more in each than one stage does.
STAGE_SHARE, EMBEDDING_SHARE, HEAD_SHARE = 1 / 3, 1 / 6, 1 / 2
FORWARD_SHARE = 1 / 3  # of a layer's operators: the backward pass issues twice as many
SELECTIVE_SHARE = 0.15  # of them, those of the attention core, which selective recomputation repeats
SHARDED_AXES = ("dp", "sdp", "edp")
SCALAR_BYTES = 8.0
SENDS = (SEND, SEND_BACK)  # one rank waits for another, and nobody for both
Axes = Mapping[str, float]


@dataclass(frozen=True)
class CpuStepTime:
    """A step on shared cores: seconds of it by part, an even share of all ranks' work, and what no core could use."""

    total_s: float
    parts: Axes
    idle_s: float
    cores: int


class RankSeconds(NamedTuple):
    """Core seconds of one rank: its own work and its collectives of a micro-batch, and what it does once a step."""

    own_s: float
    moved_s: float
    once_s: float
    scalars_s: float


def engine_of(cluster: Cluster) -> EngineSeconds:
    """What the operators of our engine cost: as measured, else as here."""
    engine = cluster.measured.engine
    if engine.layer_s is None:
        return ENGINE
    idle = ENGINE.idle if engine.idle is None else engine.idle
    return replace(engine, idle=idle, chain=ENGINE.chain if engine.chain is None else engine.chain)


def layer_s(parts: LayerParts, engine: EngineSeconds, layout: Layout, *, elements: float) -> float:
    """Core seconds of one layer and one micro-batch of `elements` hidden states, forward and backward, with what is
    computed again.
    """
    host = (engine.layer_s or 0.0) + (engine.element_s or 0.0) * elements
    whole = _both(parts.rest) + _both(parts.core) + host
    again = {
        "full": parts.rest.forward_s + parts.core.forward_s + FORWARD_SHARE * host,
        "selective": parts.core.forward_s + SELECTIVE_SHARE * host,
        "op": parts.rest.forward_s - parts.products_s / 2 + FORWARD_SHARE * host,
    }
    return whole + layout.recompute_fraction * again.get(layout.recompute, 0.0)


def around_layers_s(engine: EngineSeconds, layout: Layout, *, first: bool, last: bool) -> float:
    """Core seconds of a rank's operators around its layers, of one micro-batch."""
    share = STAGE_SHARE * layout.virtual_stages + EMBEDDING_SHARE * first + HEAD_SHARE * last
    return share * (engine.micro_batch_s or 0.0)


def _both(part: Part) -> float:
    return part.forward_s + part.backward_s


def scalar_messages(layout: Layout) -> tuple[Message, ...]:
    """The loss and the gradient's norm, once a step; traffic.py leaves them out, for their bytes."""
    axes = [("tp", layout.tp), ("pp", layout.pp), ("dp", layout.dp * layout.cp)]
    normed = [(axis, ranks) for axis, ranks in axes if ranks > 1 and (axis != "dp" or layout.zero_stage)]
    everyone = [("dp", layout.dp * layout.cp)] if layout.dp * layout.cp > 1 else []
    return tuple(Message(axis, "all_reduce", SCALAR_BYTES, ranks, "fp32") for axis, ranks in (*normed, *everyone))


def sharded_calls(layout: Layout, stage: RankStage, message: Message) -> float:
    """Collectives that one message of sharded weights or gradients is made of: one a unit of FSDP, which is a layer or
    what is around the layers.
    """
    if not layout.zero_stage or message.axis not in SHARDED_AXES or message.collective == "all_reduce":
        return 0.0
    return float(stage.layers + (layout.zero_stage < 3 or message.collective == "reduce_scatter"))


def sharded_passes(layout: Layout, stage: RankStage) -> float:
    """Units of FSDP that a micro-batch passes: their hooks run whether they gather or not."""
    if not layout.zero_stage or layout.dp * layout.cp == 1:
        return 0.0
    return float(stage.layers + stage.chunks)


def core_time(
    job: Job,
    layout: Layout,
    *,
    stages: list[tuple[RankStage, float]],
    price: Price,
    rules: MessageRules,
    update_s: float,
) -> CpuStepTime:
    """`stages`: what each pipeline rank holds, and its core seconds of compute a micro-batch; `update_s`: those of the
    optimizer's pass over memory.
    """
    count = layout.num_micro_batches(job.training.global_batch)
    ranks, cores = layout.world_size, cores_of(job.cluster, layout)
    engine = engine_of(job.cluster)
    engine = replace(engine, call_s=(engine.call_s or 0.0) * (ranks / cores - 1))
    each, found = layout.world_size // layout.pp, []
    work: dict[str, float] = defaultdict(float)
    for stage, compute in stages:
        moved = _messages_s(layout, stage, rank_messages(job, layout, stage, rules), price, engine)
        scalars = sum(price(one) + (engine.call_s or 0.0) for one in scalar_messages(layout))
        once = update_s + (engine.step_s or 0.0)
        passed = sharded_passes(layout, stage) * (engine.unit_s or 0.0)
        work["compute"] += each * count * compute
        if passed:
            work["dp_comm"] += each * count * passed
        work["optimizer"] += each * (once + scalars)
        for axis, seconds in moved.items():
            work[axis] += each * seconds
        found.append(RankSeconds(compute + passed, sum(moved.values()) / count, once, scalars))
    share = {part: seconds / cores for part, seconds in work.items()}
    balanced, idle, chain = sum(share.values()), engine.idle or 0.0, engine.chain or 0.0
    if cores >= ranks:
        total = _path_s(layout, found, count, chain=max(1.0, chain))
    else:
        waiting = (1 - 1 / cores) * _path_s(layout, found, count, own=idle, chain=chain)
        total = max(_path_s(layout, found, count), balanced + waiting)
    return CpuStepTime(total, share, total - balanced, cores)


def _messages_s(
    layout: Layout, stage: RankStage, messages: tuple[Message, ...], price: Price, engine: EngineSeconds
) -> dict[str, float]:
    """Core seconds of a rank's messages in a step, by the axis of the breakdown."""
    found: dict[str, float] = defaultdict(float)
    call, byte = engine.call_s or 0.0, engine.byte_s or 0.0
    for message in messages:
        axis = "dp" if message.axis in ("sdp", "rdp", "edp") else message.axis
        if message.collective not in SENDS:
            found[f"{axis}_comm"] += message.times * message.num_bytes * byte
        calls = sharded_calls(layout, stage, message)
        if calls:
            one = price(message._replace(num_bytes=message.num_bytes / calls)) + (engine.unit_s or 0.0)
            found[f"{axis}_comm"] += message.times * calls * (one + call)
        else:
            found[f"{axis}_comm"] += message.times * (price(message) + (message.collective not in SENDS) * call)
    return found


def _path_s(layout: Layout, ranks: Sequence[RankSeconds], count: int, *, own: float = 1.0, chain: float = 1.0) -> float:
    """The longest chain: every rank with a core to itself. `own`, `chain`: weights of own work and of collectives."""
    schedule = "interleaved" if layout.virtual_stages > 1 else layout.schedule
    times = [own * rank.own_s + chain * rank.moved_s for rank in ranks]
    thirds = [seconds / 3 for seconds in times]
    found = pipeline_time(
        schedule,
        forward_s=thirds,
        backward_s=[2 * third for third in thirds],
        weight_s=thirds,
        num_micro_batches=count,
        virtual_stages=layout.virtual_stages,
    )
    return found.total_s + max(own * rank.once_s + chain * rank.scalars_s for rank in ranks)


def cores_of(cluster: Cluster, layout: Layout) -> int:
    """Cores that the ranks of a layout can keep busy; one each where the number is not known."""
    known = cluster.node.cores * -(-layout.world_size // cluster.node.num_gpus)
    return min(known or layout.world_size, layout.world_size)
