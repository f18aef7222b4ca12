"""Bytes that one rank sends in a step, by axis, as collectives over rings send them.

A pass of a ring over n ranks sends (n - 1)/n of the buffer: once for an all-gather or a reduce-scatter, twice for an
all-reduce (Thakur et al. 2005). Scalars (loss, norm) are left out. Without expert parallelism.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.cost.parameters import end_parameters, layer_parameters, padded_vocab
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.units import DTYPE_BYTES


@dataclass(frozen=True)
class RankStage:
    """What a pipeline rank holds: layers, the embedding (first), the head (last); chunks are its virtual stages."""

    layers: int
    first: bool
    last: bool
    chunks: int = 1


def ring_bytes(ranks: int, num_bytes: float, *, passes: float = 1) -> float:
    """Bytes that each of `ranks` sends for `passes` passes over a buffer of `num_bytes`."""
    return passes * (ranks - 1) / ranks * num_bytes


def layer_passes(*, sequence_parallel: bool, regathers: bool = True) -> tuple[int, int]:
    """Passes over a layer's activations, forward and backward.

    Two all-reduces each way (Shoeybi et al. 2019); with sequence parallelism an all-gather and a reduce-scatter for
    each, and where it `regathers`, backward gathers both projections' inputs again (Korthikanti et al. 2022, section
    4.2.2) instead of keeping them.
    """
    return 4, 6 if sequence_parallel and regathers else 4


def repeated_passes(*, sequence_parallel: bool) -> int:
    """Passes that recomputing a whole layer repeats: all of its forward pass but for the last collective.

    torch's checkpointing stops once it has what the backward pass needs, and nothing needs the layer's output.
    """
    ahead, _ = layer_passes(sequence_parallel=sequence_parallel)
    return ahead - (1 if sequence_parallel else 2)


def pipeline_gathers(schedule: str, num_micro_batches: int) -> int:
    """How often ZeRO-3 gathers a layer's weights in a pipeline: a forward pass gathers them unless a backward pass
    came before it, and a backward pass unless it follows another, whatever the schedule.

    torch's stages keep what a backward pass gathered; where the backward pass is split in two, all of it (2.13).
    """
    return 1 if schedule == "zb_h1" else num_micro_batches + 1


def activation_bytes(job: Job, layout: Layout) -> float:
    """A micro-batch's hidden states."""
    model = job.model
    return float(layout.micro_batch * model.seq_len // layout.cp * model.hidden * job.training.dtype_bytes)


def message_bytes(job: Job, layout: Layout) -> float:
    """What a rank sends to the next stage: tensor-parallel peers a part each (Narayanan et al. 2021, section 4.1)."""
    return activation_bytes(job, layout) / layout.tp


def tensor_parallel_bytes(job: Job, layout: Layout, stage: RankStage) -> float:
    """Layers, embedding, head and loss; without sequence parallelism what stages exchange is gathered."""
    model, training, parallel = job.model, job.training, layout.sequence_parallel
    whole = activation_bytes(job, layout)
    summed = whole * DTYPE_BYTES[training.tensor_parallel_dtype(sequence_parallel=parallel)] / training.dtype_bytes
    layer = sum(layer_passes(sequence_parallel=parallel, regathers=_regathers(job, layout)))
    layer += repeated_passes(sequence_parallel=parallel) if layout.recompute == "full" else 0
    passes = stage.layers * layer
    passes += stage.first * (3 if parallel else 2) + stage.last * 2
    loss = 12.0 * layout.micro_batch * model.seq_len // layout.cp  # maximum, sum, target's logit, in fp32
    whole_messages = parallel or layout.schedule == "zb_h1"
    joined = 0 if whole_messages else 2 * stage.chunks - stage.first - stage.last
    volume = passes * summed + joined * whole + stage.last * 2 * loss
    replicated = stage.layers * 2 * model.norm_params + stage.last * model.norm_params
    replicated += stage.layers * 2 * model.hidden if model.bias else 0
    step = 2 * 4.0 * replicated if parallel else 0.0  # gradients of what every rank has, from a part of the sequence
    return ring_bytes(layout.tp, layout.num_micro_batches(training.global_batch) * volume + step)


def _regathers(job: Job, layout: Layout) -> bool:
    """Whether what was gathered for a layer is gathered again for its backward pass, as the engine does where it can
    (`can_regather` in launcher/worker/parallel/parallelize.py): not on CPU ranks.
    """
    allowed = layout.recompute != "full" and layout.schedule != "zb_h1"
    return allowed and job.cluster.node.gpu.kind != "cpu"


def context_parallel_bytes(job: Job, layout: Layout, stage: RankStage) -> float:
    """Keys and values of the whole sequence, gathered; their gradients, summed and cut: as much as a ring sends."""
    model = job.model
    heads = -(-model.kv_heads // layout.tp)
    whole = 2.0 * layout.micro_batch * model.seq_len * heads * model.head_dim * job.training.dtype_bytes
    again = layout.recompute != "none" or _regathers(job, layout)
    volume = layout.num_micro_batches(job.training.global_batch) * stage.layers * (3 if again else 2) * whole
    return ring_bytes(layout.cp, volume)


def pipeline_bytes(job: Job, layout: Layout, stage: RankStage) -> float:
    """Activations on, gradients back, for every chunk that has a neighbour; a tied table's gradients between its two
    ranks, of which ZeRO leaves each a shard.
    """
    if layout.pp == 1:
        return 0.0
    messages = 2 * stage.chunks - stage.first - stage.last
    whole = layout.schedule == "zb_h1" and not layout.sequence_parallel
    message = activation_bytes(job, layout) if whole else message_bytes(job, layout)
    volume = layout.num_micro_batches(job.training.global_batch) * messages * message
    if job.model.tied_embeddings and stage.first != stage.last:
        table = padded_vocab(job.model, layout.tp) // layout.tp * job.model.hidden
        shards = layout.dp * layout.cp if layout.zero_stage else 1
        volume += ring_bytes(
            2, table / shards * DTYPE_BYTES[job.training.reduces_in(job.model, layout.zero_stage)], passes=2
        )
    return volume


def data_parallel_bytes(job: Job, layout: Layout, stage: RankStage) -> float:
    """Gradients, and with ZeRO the weights (Rajbhandari et al. 2020, section 7), over dp × cp.

    ZeRO-2 reduces and ZeRO-3 gathers for every micro-batch, but in a pipeline, which sums the gradients of all first;
    embedding and head stay gathered from forward to backward.
    """
    model, training = job.model, job.training
    layers = stage.layers * layer_parameters(model, tp=layout.tp, ep=layout.ep).total
    ends = end_parameters(model, tp=layout.tp, first=stage.first, last=stage.last)
    gradients, weights = DTYPE_BYTES[training.reduces_in(model, layout.zero_stage)], training.dtype_bytes
    ranks, count = layout.dp * layout.cp, layout.num_micro_batches(training.global_batch)
    if layout.zero_stage == 0:
        return ring_bytes(ranks, (layers + ends) * gradients, passes=2)
    if layout.pp > 1:
        reduced = (layers + ends) * gradients
        gathered = layers * (pipeline_gathers(layout.schedule, count) if layout.zero_stage > 2 else 1) + ends
    else:
        reduced = (layers + ends) * gradients * (count if layout.zero_stage > 1 else 1)
        gathered = count * (2 * layers + ends) if layout.zero_stage > 2 else layers + ends
    return ring_bytes(ranks, reduced + gathered * weights)


def rank_bytes(job: Job, layout: Layout, stage: RankStage) -> dict[str, float]:
    """Bytes that a rank sends in a step, by axis."""
    return {
        "tp": tensor_parallel_bytes(job, layout, stage),
        "pp": pipeline_bytes(job, layout, stage),
        "cp": context_parallel_bytes(job, layout, stage),
        "dp": data_parallel_bytes(job, layout, stage),
    }
