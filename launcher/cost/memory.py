"""Memory of the worst rank, by part: parameters, gradients, optimizer, activations, logits, buffers, context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.cost.activations import LayerActivations
from launcher.cost.constants import Constants
from launcher.cost.ends import padded_vocab
from launcher.cost.parameters import RankParameters
from launcher.cost.pipeline import in_flight
from launcher.layout import Layout
from launcher.model import Model, Training
from launcher.units import DTYPE_BYTES

OPTIMIZER_STATES = {"adamw": 2, "adam": 2, "sgd": 0}


@dataclass(frozen=True)
class Memory:
    """Bytes of the rank that needs most, by part, and the pipeline stage it is in."""

    stage: int
    parts: Mapping[str, float]
    total_bytes: float
    usable_bytes: float

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.usable_bytes


@dataclass(frozen=True)
class StateBytes:
    """Bytes per parameter that do not depend on the stage."""

    weights: float
    gradients: float
    optimizer: float


def state_bytes(training: Training, layout: Layout, *, shards: int) -> StateBytes:
    """Bytes a parameter for weights, gradients and optimizer (Rajbhandari et al. 2020, section 5), `shards` ways by
    ZeRO stage.

    Mixed precision keeps an fp32 copy of the weights with the optimizer; gradients are held in the dtype they are
    reduced in, and where that is not fp32 the optimizer casts its shard to fp32 for the update.
    """
    e = training.dtype_bytes
    gradient = DTYPE_BYTES[training.reduce_dtype]
    optimizer = 4.0 * OPTIMIZER_STATES[training.optimizer] + (4.0 if e < 4 else 0.0) + (4.0 if gradient < 4 else 0.0)
    return StateBytes(
        weights=e / shards if layout.zero_stage >= 3 else float(e),
        gradients=gradient / shards if layout.zero_stage >= 2 else float(gradient),
        optimizer=0.0 if training.offload_optimizer else (optimizer / shards if layout.zero_stage >= 1 else optimizer),
    )


def stage_memory(
    *,
    model: Model,
    training: Training,
    layout: Layout,
    constants: Constants,
    cuda: bool,
    stage: int,
    parameters: RankParameters,
    layers: int,
    activations: LayerActivations,
    num_micro_batches: int,
) -> dict[str, float]:
    """Bytes of one rank of pipeline stage `stage`, by part."""
    dense = state_bytes(training, layout, shards=layout.dp * layout.cp)
    expert = state_bytes(training, layout, shards=max(1, layout.dp * layout.cp // layout.ep))
    held = in_flight(
        layout.schedule if layout.virtual_stages == 1 else "interleaved",
        stage=stage,
        num_stages=layout.pp,
        num_micro_batches=num_micro_batches,
        virtual_stages=layout.virtual_stages,
    )
    tokens = layout.micro_batch * model.seq_len // layout.cp
    last = stage == layout.pp - 1
    live = activations.stored * layers * held + activations.working
    logits = last * tokens * padded_vocab(model, layout.tp) / layout.tp * logits_bytes(training, constants)
    return {
        "parameters": dense.weights * parameters.dense + expert.weights * parameters.experts,
        "gradients": dense.gradients * parameters.dense + expert.gradients * parameters.experts,
        "optimizer": dense.optimizer * parameters.dense + expert.optimizer * parameters.experts,
        "activations": live,
        "logits": logits,
        "buffers": _buffers(model, training, layout, constants, parameters, layers, cuda),
        "context": constants.context_bytes if cuda else 0.0,
        "fragmentation": constants.fragmentation_fraction * (live + logits) if cuda else 0.0,
    }


def logits_bytes(training: Training, constants: Constants) -> float:
    """Bytes a logit at the worst moment of the loss: the projection's output, its fp32 copy and the softmax beside
    it.
    """
    return training.dtype_bytes + constants.logits_fp32_copies * 4.0


def _buffers(
    model: Model,
    training: Training,
    layout: Layout,
    constants: Constants,
    parameters: RankParameters,
    layers: int,
    cuda: bool,
) -> float:
    """NCCL's buffers of each communicator; with ZeRO-3 two gathered layers, with ZeRO-2 their gradients."""
    groups = sum(layout.degree(axis) > 1 for axis in ("tp", "pp", "dp", "cp", "ep"))
    nccl = groups * constants.communicator_bytes if cuda else 0.0
    layer = parameters.total / max(1, layers)
    gathered = 2.0 * training.dtype_bytes * layer if layout.zero_stage >= 3 else 0.0
    reduced = 2.0 * DTYPE_BYTES[training.reduce_dtype] * layer if layout.zero_stage >= 2 else 0.0
    return nccl + gathered + reduced
