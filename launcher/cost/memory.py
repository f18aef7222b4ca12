"""Memory of the worst rank, by part: parameters, gradients, optimizer, activations, logits, buffers, context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from launcher.cost.activations import LayerActivations
from launcher.cost.constants import Constants
from launcher.cost.parameters import RankParameters, end_parameters, padded_vocab
from launcher.cost.pipeline import in_flight
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.units import DTYPE_BYTES

OPTIMIZER_STATES = {"adamw": 2, "adam": 2, "sgd": 0}


@dataclass(frozen=True)
class Memory:
    """Bytes of the rank that needs most, by part, and the pipeline stage it is in."""

    stage: int
    parts: Mapping[str, float]
    total_bytes: float
    usable_bytes: float
    host_bytes: float = 0.0  # of the node, for what its ranks offload
    usable_host_bytes: float = inf

    @property
    def fits_host(self) -> bool:
        return self.host_bytes <= self.usable_host_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.usable_bytes and self.fits_host


def offloaded_bytes(job: Job, layout: Layout, held: RankParameters) -> float:
    """Bytes of a rank's optimizer states, main weights and gradients that are on the host (Ren et al. 2021)."""
    if not layout.offload_optimizer:
        return 0.0
    each = 4.0 * OPTIMIZER_STATES[job.training.optimizer] + (4.0 if job.training.dtype_bytes < 4 else 0.0)
    dense, experts = (layout.shards, expert_shards(layout)) if layout.zero_stage else (1, 1)
    return (each + job.training.dtype_bytes) * (held.dense / dense + held.experts / experts)


@dataclass(frozen=True)
class StateBytes:
    """Bytes per parameter that do not depend on the stage."""

    weights: float
    gradients: float
    optimizer: float


def state_bytes(job: Job, layout: Layout, *, shards: int) -> StateBytes:
    """Bytes a parameter for weights, gradients and optimizer (Rajbhandari et al. 2020, section 5), `shards` ways by
    ZeRO stage.

    Mixed precision keeps an fp32 copy of the weights with the optimizer, and fp16 gradients, which are scaled, an fp32
    copy of them too: 4 + 16/d bytes (Megatron-LM, docs of its distributed optimizer). Fully sharded, the fp32 shard is
    the parameter itself: 16/d.
    """
    training = job.training
    e = training.dtype_bytes
    gradient = DTYPE_BYTES[job.stack.reduces_in(training)]
    optimizer = 4.0 * OPTIMIZER_STATES[training.optimizer] + (4.0 if e < 4 else 0.0)
    if training.dtype == "fp16" and gradient < 4 and layout.zero_stage < 3:
        optimizer += 4.0
    if layout.zero_stage >= 3:  # gradients reach the optimizer in the dtype of its fp32 shards
        e, gradient = (e if e >= 4 else 0), 4
    return StateBytes(
        weights=e / shards if layout.zero_stage >= 3 else float(e),
        gradients=gradient * _whole_or_shard(job, layout, shards),
        optimizer=0.0 if layout.offload_optimizer else (optimizer / shards if layout.zero_stage >= 1 else optimizer),
    )


def _whole_or_shard(job: Job, layout: Layout, shards: int) -> float:
    """How much of its gradients a rank holds, as a share.

    A pipeline sums those of all micro-batches before it reduces them; where it does not, a virtual stage's are whole
    while micro-batches pass it, and those of the one before while they are reduced.
    """
    if layout.zero_stage < 2:
        return 1.0
    if layout.pp == 1:
        return 1 / shards
    if layout.zero_stage > 2 or not job.stack.pipeline_shards_gradients:
        return 1.0
    return 1 / shards + (1 - 1 / shards) * min(1.0, 2 / layout.virtual_stages)


def stage_memory(
    *,
    job: Job,
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
    model = job.model
    dense = state_bytes(job, layout, shards=layout.shards)
    expert = dense
    if layout.ep > 1:
        expert = state_bytes(job, layout, shards=expert_shards(layout))
    held = in_flight(
        layout.schedule if layout.virtual_stages == 1 else "interleaved",
        stage=stage,
        num_stages=layout.pp,
        num_micro_batches=num_micro_batches,
        virtual_stages=layout.virtual_stages,
    )
    tokens = layout.micro_batch * model.seq_len // layout.cp
    last = stage == layout.pp - 1
    stored = activations.stored * layers * held - _freed_inputs(job, layout, stage, held)
    logits = 0.0
    if last:
        logits = tokens * padded_vocab(model, layout.tp) * logits_bytes(job, layout.tp, constants)
        logits *= held if layout.schedule == "gpipe" else 1  # else a micro-batch's backward pass follows its loss
    gathered_layers, gathered_ends = _gathered(job, layout, stage, parameters)
    # A backward pass gathers a layer as it drops the layer's activations, a forward pass the other way round.
    traded = min(gathered_layers, activations.stored * layers)
    # The loss comes before the first layer's backward pass: its logits and a layer's gradients are never alive
    # together.
    lost = 0.0
    gradients = dense.gradients * parameters.dense + expert.gradients * parameters.experts
    if cuda and layout.pp > 1:
        lost = job.stack.pipeline_fragmentation * (stored + activations.working)
    elif cuda and layout.tp > 1 and job.stack.late_gradients and num_micro_batches > 1:
        lost = constants.late_gradient_fraction * min(gradients, logits)
    return {
        "parameters": dense.weights * parameters.dense
        + expert.weights * parameters.experts
        + gathered_layers
        + gathered_ends
        + _fp8_weights(job, layout, parameters),
        "gradients": gradients,
        "optimizer": dense.optimizer * parameters.dense + expert.optimizer * parameters.experts,
        "activations": max(
            stored - traded + max(0.0, activations.working - logits),
            stored * (1 - 1 / held) + _table_gradient(job, layout, stage, num_micro_batches),
        ),
        "logits": logits,
        "buffers": _buffers(job, layout, constants, parameters, layers, stage, cuda),
        "context": constants.context_bytes if cuda else 0.0,
        "fragmentation": lost,
    }


def _freed_inputs(job: Job, layout: Layout, stage: int, held: float) -> float:
    """Bytes of the inputs of stages that a rank does not keep; the embedding's are tokens."""
    if not job.stack.frees_stage_inputs or layout.pp == 1 or (stage == 0 and layout.virtual_stages == 1):
        return 0.0
    chunks = held * layout.virtual_stages - (layout.pp if stage == 0 else 0)
    divided = layout.cp * (layout.tp if layout.sequence_parallel else 1)
    tokens = layout.micro_batch * job.model.seq_len / divided
    return max(0.0, chunks) * tokens * job.model.hidden * job.training.dtype_bytes


def _fp8_weights(job: Job, layout: Layout, parameters: RankParameters) -> float:
    """Bytes of the layers' weights in fp8, and of their transposes, where they are kept; what is gathered is not."""
    kept = job.training.fp8 and job.stack.caches_fp8 and layout.zero_stage < 3
    return 2.0 * (parameters.total - parameters.ends) if kept else 0.0


def expert_shards(layout: Layout) -> int:
    """Ranks that ZeRO shards an expert's states over: those of the shard group that have the same experts."""
    return max(1, min(layout.shards, layout.dp * layout.cp // layout.ep))


def logits_bytes(job: Job, tp: int, constants: Constants) -> float:
    """Bytes on one rank for each logit of the whole vocabulary, at the loss's worst moment.

    Divided by tp with a loss over divided logits; else gathered, next to this rank's share. Plain operators on fp32
    copies keep more of them; one kernel turns the logits into their gradient.
    """
    e, stack = job.training.dtype_bytes, job.stack
    lost = 0.0 if stack.expandable_segments else constants.plain_loss_lost_bytes
    kept = constants.plain_loss_bytes + lost if stack.wide_loss else constants.loss_bytes
    whole = e + (e if stack.fused_loss else kept)
    if stack.loss_parallel:
        return whole / tp
    return whole + (e / tp + e if tp > 1 else 0.0)  # this rank's share, and all shares before they are joined


def _table_gradient(job: Job, layout: Layout, stage: int, num_micro_batches: int) -> float:
    """Bytes of the embedding's gradient of one micro-batch, dense in PyTorch, next to the sum to which it is added; it
    comes last, when the micro-batch's activations are gone.
    """
    model = job.model
    sharded = layout.zero_stage > 1 and layout.pp == 1
    if stage > 0 or sharded or num_micro_batches < 2:
        return 0.0
    return float(padded_vocab(model, layout.tp) // layout.tp * model.hidden * job.training.dtype_bytes)


def _buffers(
    job: Job,
    layout: Layout,
    constants: Constants,
    parameters: RankParameters,
    layers: int,
    stage: int,
    cuda: bool,
) -> float:
    """NCCL's buffers of each communicator, and what fully sharded data parallelism gathers and reduces.

    ZeRO-3 (as PyTorch's FSDP2): a layer's weights and those of the next, its gradients, and their copy in the dtype of
    the reduction; the head's gradient waits until the end.
    """
    groups = sum(layout.degree(axis) > 1 for axis in ("tp", "pp", "dp", "cp", "ep"))
    groups += job.stack.pipeline_groups if layout.pp > 1 else 0
    nccl = groups * constants.communicator_bytes if cuda else 0.0
    if layout.zero_stage < 3:
        return nccl
    model, e, reduced = job.model, job.training.dtype_bytes, DTYPE_BYTES[job.stack.reduces_in(job.training)]
    last = stage == layout.pp - 1
    ends = end_parameters(model, tp=layout.tp, first=stage == 0, last=last)
    head = padded_vocab(model, layout.tp) / layout.tp * model.hidden if last else 0.0
    return nccl + (3.0 * e + reduced) * (parameters.total - ends) / max(1, layers) + e * head


def _gathered(job: Job, layout: Layout, stage: int, parameters: RankParameters) -> tuple[float, float]:
    """Bytes of weights that ZeRO-3 holds gathered: of layers, and of embedding and head, which stay so from forward to
    backward (FSDP's root).

    Layers are gathered one at a time (see `_buffers`), but in a pipeline torch's stages keep what a backward pass
    gathered until the next forward pass.
    """
    if layout.zero_stage < 3:
        return 0.0, 0.0
    model, e = job.model, job.training.dtype_bytes
    ends = end_parameters(model, tp=layout.tp, first=stage == 0, last=stage == layout.pp - 1)
    return (e * (parameters.total - ends) if layout.pp > 1 else 0.0), e * ends
