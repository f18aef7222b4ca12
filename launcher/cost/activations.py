"""Activation bytes that a layer keeps for its backward pass, tensor by tensor (Korthikanti et al. 2022, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.cost.layer import LayerShape
from launcher.layout.job import Job


@dataclass(frozen=True)
class LayerActivations:
    """Bytes of one layer and one micro-batch on one rank.

    `stored`: kept from forward to backward, by recomputation mode; `working`: more, while the layer is in use.
    """

    stored: float
    working: float


def layer_activations(
    job: Job, shape: LayerShape, recompute: str, *, fraction: float = 1.0, gathered: bool = False
) -> LayerActivations:
    """Return the bytes that a layer stores, and the extra bytes of recomputation or gradients while it runs.

    `gathered`: with sequence parallelism the projections' inputs stay gathered, instead of being gathered again.
    `fraction`: of the layers that are recomputed; the mean of what one stores, and the most that one needs.
    """
    model, training = job.model, job.training
    tokens = shape.sequences * model.seq_len // shape.cp
    sharded = tokens / (shape.tp if shape.sequence_parallel else 1)
    e = training.dtype_bytes
    core = _core(job, shape, tokens)
    inputs = tokens if gathered else sharded
    whole = _rest(job, shape, tokens, sharded, inputs) + core
    inside = max(model.ffn_hidden, model.shared_ffn_hidden, model.dense_width)
    widest = max(inside * (2 if model.gated_mlp else 1), 3 * model.attention_hidden)
    gradients = max(2.0 * e * tokens * widest / shape.tp, _score_gradients(job, shape, tokens))
    kept = {
        "none": whole,
        "selective": whole - core,
        "op": _products(job, shape, tokens, sharded) + core,
        "full": e * sharded * model.hidden,
    }[recompute]
    again = core if recompute == "selective" else whole - (kept if recompute == "op" else 0.0)
    if recompute == "none":
        return LayerActivations(whole, gradients)
    return LayerActivations(fraction * kept + (1 - fraction) * whole, again + gradients)


def _products(job: Job, shape: LayerShape, tokens: int, sharded: float) -> float:
    """Return what recomputation by operator keeps: a layer's input, the attention's output, every second product's.

    Of query, key, value, output, gate, up and down projections the second, fourth, … (torchtitan's policy).
    """
    model, e = job.model, job.training.dtype_bytes
    widths = [model.attention_hidden, model.kv_hidden, model.kv_hidden, model.hidden]
    widths += [model.ffn_hidden] * (2 if model.gated_mlp else 1) + [model.hidden]
    divided = sum(width for width in widths[1::2] if width != model.hidden) / shape.tp
    replicated = sum(width for width in widths[1::2] if width == model.hidden)
    return e * (sharded * (model.hidden + replicated) + tokens * (divided + model.attention_hidden / shape.tp))


def _core(job: Job, shape: LayerShape, tokens: int) -> float:
    """The attention core: scores with separate kernels; log-sum-exp and nothing else with FlashAttention."""
    model, training = job.model, job.training
    heads = -(-model.heads // shape.tp)
    if training.attention in ("flash", "flash1"):
        return 4.0 * tokens * heads
    scores = float(tokens) * model.seq_len * heads
    e = training.dtype_bytes
    softmax = e + (4 if training.attention == "math" and e < 4 else 0)
    return scores * (softmax + (e + 1 if job.stack.runs_dropout(training) else 0))


def _score_gradients(job: Job, shape: LayerShape, tokens: int) -> float:
    """Gradients of the scores before and after softmax, which are alive together: in fp32 with separate operators."""
    model, training = job.model, job.training
    if training.attention in ("flash", "flash1"):
        return 0.0
    each = 4 if training.attention == "math" else training.dtype_bytes
    return 2.0 * each * tokens * model.seq_len * -(-model.heads // shape.tp)


def _rest(job: Job, shape: LayerShape, tokens: int, sharded: float, inputs: float) -> float:
    """Everything except the core. With LayerNorm, dropout and no gating: the paper's 34 s·b·h at tp = 1."""
    model, training = job.model, job.training
    e, hidden, tp = training.dtype_bytes, model.hidden, shape.tp
    norm = e if model.norm == "layernorm" or job.stack.fused_norm else 4 + e
    masks = 2 if job.stack.runs_dropout(training) else 0
    replicated = sharded * hidden * (2 * norm + masks) + inputs * hidden * 2 * e
    queries = model.attention_hidden
    qkv = queries + 2 * model.kv_hidden
    unrotated = model.positions == "rotary" and job.stack.joint_qkv and not job.stack.fused_rotary
    attention = e * tokens * (qkv + (queries + model.kv_hidden if unrotated else 0) + queries) / tp
    width = max(model.visited_ffn_hidden, model.dense_width)
    mlp = e * tokens * width * _mlp_tensors(job) / tp
    return replicated + attention + mlp


def _mlp_tensors(job: Job) -> int:
    """Tensors of the MLP's inner width that are kept: an activation's input and output. Where it is gated: gate, up and
    their product, and in separate operators the activated gate.
    """
    if not job.model.gated_mlp:
        return 2
    return 3 if job.stack.fused_activation else 4
