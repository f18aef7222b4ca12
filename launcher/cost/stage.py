"""Wall time of a piece of a stage on one rank: device time, the host that must keep ahead of it, and its
collectives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from launcher.cost.collectives import all_gather_s, all_reduce_s, all_to_all_s
from launcher.cost.constants import Constants
from launcher.cost.layer import LayerParts, LayerShape, Part
from launcher.cost.network import Fabric, Group
from launcher.cost.traffic import layer_passes, repeated_passes
from launcher.model import Model, Training
from launcher.units import DTYPE_BYTES


@dataclass(frozen=True)
class Cost:
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


@dataclass(frozen=True)
class LayerGroups:
    """The groups that a layer's collectives run over."""

    tp: Group
    cp: Group
    ep: Group


class Late(NamedTuple):
    """Seconds that a rank waits for the last of its group: in one pass over activations (tp), in one layer's pass."""

    tp_s: float
    cp_s: float
    ep_s: float


def layer_cost(
    *,
    model: Model,
    training: Training,
    constants: Constants,
    fabric: Fabric,
    parts: LayerParts,
    groups: LayerGroups,
    shape: LayerShape,
    recompute: str,
    hides_tp: bool,
    skipped_s: float | None = None,
) -> Cost:
    """One layer: compute, or the host where that is slower, plus the exposed part of every collective, and the wait
    for its last rank.

    `skipped_s`: seconds at the layer's end that recomputation leaves out, with the collective after them; None: it
    repeats everything. `hides_tp`: collectives of the backward pass run beside products. With sequence parallelism that
    pass gathers each projection's input again (Korthikanti et al. 2022, 4.2.2).
    """
    tp_s = _tensor_parallel_s(model, training, fabric, groups.tp, shape) * constants.collective_slowdown
    cp_s = _context_parallel_s(model, training, fabric, groups.cp, shape) * constants.collective_slowdown
    ep_s = _expert_parallel_s(model, training, fabric, groups.ep, shape) * constants.collective_slowdown
    late = _late(constants, shape)
    again, tp_again = (1 if recompute == "full" else 0), 0.0
    tp_hidden = min(tp_s, parts.rest.weight_s) if hides_tp else 0.0
    ahead, back = layer_passes(sequence_parallel=shape.sequence_parallel)
    regathered = (back - ahead) / ahead * tp_s
    tp_back = tp_s + regathered - tp_hidden * (1 - constants.tp_overlap_cost)
    device = parts.rest + parts.core
    forward = max(device.forward_s + tp_s + cp_s + ep_s, constants.host_forward_s)
    backward = max(device.backward_s + tp_back + 2 * cp_s + ep_s, constants.host_backward_s)
    tp_waits = (ahead + back) * late.tp_s
    if again:
        passes = ahead if skipped_s is None else repeated_passes(sequence_parallel=shape.sequence_parallel)
        tp_again = passes * (tp_s / ahead + late.tp_s)
        repeated = device.forward_s - (skipped_s or 0.0) + passes / ahead * tp_s + cp_s + ep_s
        backward += max(repeated, constants.host_forward_s + constants.host_checkpoint_s)
        backward += passes * late.tp_s + late.cp_s + late.ep_s
    elif recompute == "selective":
        backward += parts.core.forward_s
    return Cost(
        forward_s=forward + ahead * late.tp_s + late.cp_s + late.ep_s,
        backward_s=backward + back * late.tp_s + 2 * late.cp_s + late.ep_s,
        weight_s=parts.rest.weight_s,
        tp_s=tp_s + tp_again + tp_back + tp_waits,
        cp_s=(cp_s + late.cp_s) * (3 + again),
        ep_s=(ep_s + late.ep_s) * (2 + again),
        tp_hidden_s=tp_hidden,
    )


def part_cost(part: Part, *, collective_s: float = 0.0) -> Cost:
    """An end of the pipeline (embedding, head); `collective_s` runs once forward and once backward."""
    return Cost(part.forward_s + collective_s, part.backward_s + collective_s, part.weight_s, tp_s=2 * collective_s)


def _late(constants: Constants, shape: LayerShape) -> Late:
    """Every other rank of a group may be the late one, on its host too; an all-reduce, two passes, waits once."""
    one = constants.late_rank_s
    tp = one * (shape.tp - 1) * (1.0 if shape.sequence_parallel else 0.5)
    return Late(tp, one * (shape.cp - 1), 2 * one * (shape.ep - 1))


def _activation_bytes(model: Model, training: Training, shape: LayerShape) -> float:
    return float(shape.sequences * model.seq_len // shape.cp * model.hidden * training.dtype_bytes)


def _tensor_parallel_s(model: Model, training: Training, fabric: Fabric, group: Group, shape: LayerShape) -> float:
    """Two all-reduces a pass (Shoeybi et al. 2019); with sequence parallelism an all-gather and a reduce-scatter
    each.
    """
    reduced = DTYPE_BYTES[training.tensor_parallel_dtype(sequence_parallel=shape.sequence_parallel)]
    num_bytes = _activation_bytes(model, training, shape) * reduced / training.dtype_bytes
    passes, _ = layer_passes(sequence_parallel=shape.sequence_parallel)
    if shape.sequence_parallel:
        return passes * all_gather_s(fabric, group, num_bytes)
    return passes // 2 * all_reduce_s(fabric, group, num_bytes)


def _context_parallel_s(model: Model, training: Training, fabric: Fabric, group: Group, shape: LayerShape) -> float:
    """Keys and values are gathered before the attention (Llama 3, section 3.3.2), nothing behind it; in the backward
    pass once more, and their gradients are summed and cut.
    """
    if shape.cp < 2:
        return 0.0
    whole = 2.0 * shape.sequences * model.seq_len * model.kv_hidden / shape.tp * training.dtype_bytes
    return all_gather_s(fabric, group, whole)


def _expert_parallel_s(model: Model, training: Training, fabric: Fabric, group: Group, shape: LayerShape) -> float:
    """Tokens go to their experts and come back (Lepikhin et al. 2021)."""
    if not model.num_experts or shape.ep < 2:
        return 0.0
    share = shape.tp if shape.sequence_parallel else 1
    return 2 * all_to_all_s(fabric, group, _activation_bytes(model, training, shape) * model.experts_per_token / share)
