"""One rank's seconds for one micro-batch, stage by stage of the pipeline, and a step broken down by them."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.cost.data_parallel import Exposed
from launcher.cost.stage import Cost

# The parts of a step.
BREAKDOWN = ("compute", "tp_comm", "cp_comm", "ep_comm", "pp_comm", "dp_comm", "bubble", "optimizer", "tp_comm_hidden",
             "dp_comm_hidden")  # fmt: skip


@dataclass(frozen=True)
class StageTimes:
    """One rank's seconds for one micro-batch, stage by stage of the pipeline, with the parts that are communication."""

    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    weight_s: tuple[float, ...]
    worst: int
    layers: tuple[int, ...]
    layer: Cost
    ends: Cost  # work of the worst rank in addition to layers
    pp_s: float


def stage_times(
    *,
    layer: Cost,
    layers: tuple[int, ...],
    ends: tuple[Cost, Cost],
    sends_s: float,
    accumulation_s: float,
    host_s: float,
) -> StageTimes:
    """`layers` of each rank; `sends_s`: of a rank's sends, one way; `accumulation_s`: of a layer's gradients."""
    embedding, head = ends
    forward = [count * layer.forward_s + sends_s + host_s for count in layers]
    per_layer = layer.backward_s + accumulation_s
    backward = [count * per_layer + sends_s for count in layers]
    weight = [count * layer.weight_s for count in layers]
    forward[0] += embedding.forward_s
    backward[0] += embedding.backward_s
    forward[-1] += head.forward_s
    backward[-1] += head.backward_s
    weight[-1] += head.weight_s
    busy = [f + b for f, b in zip(forward, backward, strict=True)]
    worst = busy.index(max(busy))
    first, last = worst == 0, worst == len(layers) - 1
    both = Cost(
        first * embedding.forward_s + last * head.forward_s + host_s,
        first * embedding.backward_s + last * head.backward_s,
        tp_s=first * embedding.tp_s + last * head.tp_s,
    )
    return StageTimes(tuple(forward), tuple(backward), tuple(weight), worst, layers, layer, both, 2 * sends_s)


def breakdown(
    stages: StageTimes, num_micro_batches: int, bubble_s: float, gradients: Exposed, optimizer_s: float
) -> dict[str, float]:
    """The parts of a step on the busiest rank; those that end in `_hidden` overlap with compute and are not in the
    sum.
    """
    layer, m = stages.layer, num_micro_batches
    count = stages.layers[stages.worst]
    busy = stages.forward_s[stages.worst] + stages.backward_s[stages.worst]
    tp = count * layer.tp_s + stages.ends.tp_s
    cp, ep = count * layer.cp_s, count * layer.ep_s
    return {
        "compute": m * (busy - tp - cp - ep - stages.pp_s),
        "tp_comm": m * tp,
        "cp_comm": m * cp,
        "ep_comm": m * ep,
        "pp_comm": m * stages.pp_s,
        "dp_comm": gradients.exposed_s,
        "bubble": bubble_s,
        "optimizer": optimizer_s,
        "tp_comm_hidden": m * count * layer.tp_hidden_s,
        "dp_comm_hidden": gradients.hidden_s,
    }
