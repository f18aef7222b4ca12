"""Time of one transformer layer on one rank for one micro-batch, without what crosses links."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from launcher.cost import elementwise
from launcher.cost.attention import core_time
from launcher.cost.constants import Constants
from launcher.cost.data_parallel import copies_gathers, reduces_every_pass
from launcher.cost.device import Device
from launcher.cost.gemm import gemm_s
from launcher.cost.parameters import layer_parameters
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.model import Model
from launcher.units import DTYPE_BYTES

# Tokens of the busiest experts over an even share, for which all others wait: capacity factors of 1.0 to 1.25 hold what
# routers with a balancing loss send (Fedus et al. 2021, section 2.2; Lepikhin et al. 2021). An assumption.
EXPERT_IMBALANCE = 1.1


class Part(NamedTuple):
    """Seconds on the device, and operators that the host issues, forward and backward; `weight_s` is the part of
    the backward pass that computes weight gradients (Qi et al. 2024 split the two)."""

    forward_s: float = 0.0
    backward_s: float = 0.0
    weight_s: float = 0.0
    forward_ops: int = 0
    backward_ops: int = 0

    def __add__(self, other: Part) -> Part:  # type: ignore[override]  # a sum, not a longer tuple
        return Part(
            self.forward_s + other.forward_s,
            self.backward_s + other.backward_s,
            self.weight_s + other.weight_s,
            self.forward_ops + other.forward_ops,
            self.backward_ops + other.backward_ops,
        )


class LayerShape(NamedTuple):
    """What a rank sees of a layer: everything that its time depends on."""

    sequences: int  # of one micro-batch
    tp: int
    cp: int
    ep: int
    sequence_parallel: bool


@dataclass(frozen=True)
class LayerParts:
    """The layer without the attention core, and the core by itself (selective recomputation repeats only that)."""

    rest: Part
    core: Part
    products_s: float = 0.0  # of the forward pass, its products alone


def layer_parts(device: Device, job: Job, shape: LayerShape, *, tokenwise: Part, core: Part) -> LayerParts:
    """Device time of one layer: the parts that layouts of other shapes share, `tokenwise_part` and `core_part`, and
    what depends on sequence parallelism.
    """
    model = job.model
    tokens = shape.sequences * model.seq_len // shape.cp
    rest = tokenwise
    summed = job.stack.tensor_parallel_dtype(job.training, sequence_parallel=shape.sequence_parallel)
    if shape.tp > 1 and DTYPE_BYTES[summed] > device.dtype_bytes:
        rest += streamed(device, elementwise.reduction_casts(device.dtype_bytes), float(tokens * model.hidden))
    if shape.cp > 1:
        kept = 2.0 * shape.sequences * model.seq_len * model.kv_hidden / shape.tp
        rest += streamed(device, elementwise.joined_chunks(device.dtype_bytes), kept)
    rest += _norms_and_residuals(device, job, tokens // (shape.tp if shape.sequence_parallel else 1))
    return LayerParts(rest, core, products_s(device, model, tokens=tokens, tp=shape.tp, ep=shape.ep))


def tokenwise_part(device: Device, job: Job, *, tokens: int, tp: int, ep: int) -> Part:
    """What depends on the number of tokens alone, however they are cut into sequences."""
    part = _projections(device, job.model, tokens, tp)
    part += _mlp(device, job, tokens, tp=tp, ep=ep)
    return part + _around_attention(device, job, tokens, tp)


def products_s(device: Device, model: Model, *, tokens: int, tp: int, ep: int) -> float:
    """Seconds of a layer's products in the forward pass."""
    experts, rows = _expert_rows(model, tokens, ep)
    matrices = 2 if model.gated_mlp else 1
    up = gemm_s(device.products, rows, matrices * model.ffn_hidden // tp, model.hidden, batch=experts)
    down = gemm_s(device.products, rows, model.hidden, model.ffn_hidden // tp, batch=experts)
    if width := model.shared_ffn_hidden // tp:
        up += gemm_s(device.products, tokens, matrices * width, model.hidden)
        down += gemm_s(device.products, tokens, model.hidden, width)
    return _projections(device, model, tokens, tp).forward_s + up + down


def core_part(device: Device, constants: Constants, job: Job, *, sequences: int, tp: int, cp: int) -> Part:
    """The attention core."""
    model, training = job.model, job.training
    core = core_time(
        device,
        constants,
        kernel=job.stack.attention_kernel(training),
        sequences=sequences,
        heads=-(-model.heads // tp),
        queries=model.seq_len // cp,
        keys=model.seq_len,
        head_dim=model.head_dim,
        dropout=job.stack.runs_dropout(training),
    )
    return Part(core.forward_s, core.backward_s, 0.0, core.forward_kernels, core.backward_kernels)


def linear(device: Device, tokens: int, inputs: int, outputs: int, *, batch: int = 1) -> Part:
    """One projection: forward, and backward as two products, for the input's and for the weight's gradient."""
    forward = gemm_s(device, tokens, outputs, inputs, batch=batch)
    data = gemm_s(device, tokens, inputs, outputs, batch=batch)
    weight = gemm_s(device, outputs, inputs, tokens, batch=batch)
    return Part(forward, data + weight, weight, 1, 2)


def product(device: Device, tokens: int, inputs: int, outputs: int, *, batch: int = 1) -> Part:
    """A projection of a layer: in the training's dtype, or in fp8 with the casts of its operands."""
    part = linear(device.products, tokens, inputs, outputs, batch=batch)
    if not device.fp8:
        return part
    each = elementwise.fp8_casts(device.dtype_bytes)
    ahead, back = elementwise.Traffic(each, 2, 0.0, 0), elementwise.Traffic(0.0, 0, each, 1)
    part += streamed(device, ahead, float(batch * inputs * (tokens + outputs)))
    return part + streamed(device, back, float(batch * tokens * outputs))


def streamed(device: Device, traffic: elementwise.Traffic, elements: float) -> Part:
    """A memory-bound operator over `elements` elements."""
    scale = elements / device.hbm_bytes_per_s
    return Part(
        traffic.forward_bytes * scale + traffic.forward_kernels * device.gap_s,
        traffic.backward_bytes * scale + traffic.backward_kernels * device.gap_s,
        0.0,
        traffic.forward_kernels,
        traffic.backward_kernels,
    )


def _projections(device: Device, model: Model, tokens: int, tp: int) -> Part:
    kv_hidden = model.head_dim * -(-model.kv_heads // tp)
    queries = model.attention_hidden // tp
    joint = product(device, tokens, model.hidden, queries + 2 * kv_hidden)
    return joint + product(device, tokens, queries, model.hidden)


def _mlp(device: Device, job: Job, tokens: int, *, tp: int, ep: int) -> Part:
    """The MLP; with experts, the share of this rank: its experts' tokens from all ranks of its expert group."""
    model = job.model
    width = model.ffn_hidden // tp
    experts, rows = _expert_rows(model, tokens, ep)
    matrices = 2 if model.gated_mlp else 1
    part = product(device, rows, model.hidden, matrices * width, batch=experts)
    part += product(device, rows, width, model.hidden, batch=experts)
    traffic = elementwise.activation(device.dtype_bytes, gated=model.gated_mlp, fused=job.stack.fused_activation)
    part += streamed(device, traffic, float(rows) * experts * width)
    if model.gated_mlp:  # the gradients of the two projections' common input are summed
        part += streamed(device, elementwise.Traffic(0.0, 0, 3.0 * device.dtype_bytes, 1), float(tokens * model.hidden))
    if model.shared_ffn_hidden:
        part += _shared_experts(device, job, tokens, tp)
    if model.num_experts:
        part += linear(device, tokens, model.hidden, model.num_experts)
        routed = float(tokens * model.experts_per_token * model.hidden)
        part += streamed(device, elementwise.routing(device.dtype_bytes), routed)
    return part


def _shared_experts(device: Device, job: Job, tokens: int, tp: int) -> Part:
    """The experts that every token visits: one MLP, and its output added to that of the others."""
    model, width = job.model, job.model.shared_ffn_hidden // tp
    part = product(device, tokens, model.hidden, (2 if model.gated_mlp else 1) * width)
    part += product(device, tokens, width, model.hidden)
    traffic = elementwise.activation(device.dtype_bytes, gated=model.gated_mlp, fused=job.stack.fused_activation)
    part += streamed(device, traffic, float(tokens) * width)
    return part + streamed(
        device, elementwise.residual(device.dtype_bytes, dropout=False), float(tokens * model.hidden)
    )


def _expert_rows(model: Model, tokens: int, ep: int) -> tuple[int, int]:
    """Experts of a rank, and the tokens that each works on."""
    if not model.num_experts:
        return 1, tokens
    rows = ceil(EXPERT_IMBALANCE * tokens * model.experts_per_token * ep / model.num_experts)
    return max(1, model.num_experts // ep), rows


def _around_attention(device: Device, job: Job, tokens: int, tp: int) -> Part:
    """Rotary positions, and the copies that bring heads into and out of the kernel's order.

    All kernels read heads where the projection left them. Separate ones leave their result, and take its gradient, in
    an order of their own; FlashAttention's gradients of queries, keys and values are joined.
    """
    e, model = device.dtype_bytes, job.model
    if job.training.attention.startswith("flash"):
        joined = elementwise.Traffic(0.0, 0, 2 * e, 1)
        part = streamed(device, joined, tokens * (model.attention_hidden + 2 * model.kv_hidden) / tp)
    else:
        part = streamed(device, elementwise.Traffic(2 * e, 1, 2 * e, 1), tokens * model.attention_hidden / tp)
    if model.positions == "rotary":
        traffic = elementwise.rotary(e, fused=job.stack.fused_rotary)
        for width in (model.attention_hidden, model.kv_hidden):
            part += streamed(device, traffic, tokens * width / tp)
    return part


def _norms_and_residuals(device: Device, job: Job, tokens: int) -> Part:
    model, stack = job.model, job.stack
    e, elements = device.dtype_bytes, float(tokens * model.hidden)
    fused = model.norm == "layernorm" or stack.fused_norm
    norm = streamed(device, elementwise.norm(e, fused=fused), elements)
    residual = streamed(device, elementwise.residual(e, dropout=stack.runs_dropout(job.training)), elements)
    return norm + norm + residual + residual


def last_product_s(device: Device, model: Model, *, tokens: int, tp: int) -> float:
    """Seconds of a layer's last product and the residual after it; 0 with experts, whose outputs are kept."""
    if model.num_experts:
        return 0.0
    added = streamed(device, elementwise.residual(device.dtype_bytes, dropout=False), float(tokens * model.hidden))
    return gemm_s(device.products, tokens, model.hidden, model.ffn_hidden // tp) + added.forward_s


def accumulation_s(device: Device, job: Job, layout: Layout) -> float:
    """Seconds to add one layer's gradients of a micro-batch to the running sums, in a pass over memory, or to copy them
    to where they are reduced; and with FSDP2 to copy the weights that it gathered.
    """
    counted = elementwise.bucketing if reduces_every_pass(layout) else elementwise.accumulation
    traffic = counted(device.dtype_bytes, DTYPE_BYTES[job.stack.reduces_in(job.training)])
    held = layer_parameters(job.model, tp=layout.tp, ep=layout.ep).total
    seconds = streamed(device, traffic, held).backward_s
    if copies_gathers(job, layout):
        seconds += streamed(device, elementwise.copied_gathers(device.dtype_bytes), held).backward_s
    return seconds
