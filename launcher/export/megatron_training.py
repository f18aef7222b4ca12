"""The model and the training of a plan in Megatron-LM's options."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.export import facts
from launcher.model import Model
from launcher.planner.record import Plan

BACKENDS = {"flash": "flash", "flash1": "flash", "fused": "unfused", "math": "unfused"}
PADDING = 128  # --make-vocab-size-divisible-by's default, times tp


def model_flags(plan: Plan) -> list[str]:
    """The transformer's shape."""
    model = plan.job.model
    flags: list[object] = [
        "--num-layers", model.layers,
        "--hidden-size", model.hidden,
        "--ffn-hidden-size", dense_width(model),
        "--num-attention-heads", model.heads,
        "--kv-channels", model.head_dim,
        "--seq-length", model.seq_len,
        "--max-position-embeddings", model.seq_len,
        "--norm-epsilon", f"{model.norm_eps:g}",
        "--vocab-size", model.vocab,
        "--padded-vocab-size", padded_vocab(plan),
    ]  # fmt: skip
    if model.kv_heads != model.heads:
        flags += ["--group-query-attention", "--num-query-groups", model.kv_heads]
    flags += ["--normalization", "RMSNorm"] if model.norm == "rmsnorm" else []
    if model.positions == "rotary":
        flags += ["--position-embedding-type", "rope", "--rotary-base", round(model.rope_theta)]
    flags += ["--swiglu"] if model.gated_mlp else []
    flags += [] if model.bias else ["--disable-bias-linear"]
    flags += [] if model.tied_embeddings else ["--untie-embeddings-and-output-weights"]
    return [str(flag) for flag in flags] + _expert_flags(model)


def padded_vocab(plan: Plan) -> int:
    """The vocabulary as the plan counts it where tp divides it, else padded as Megatron-LM does."""
    vocab, tp = plan.job.model.vocab, plan.layout.tp
    multiple = PADDING * tp
    return vocab if vocab % tp == 0 else -(-vocab // multiple) * multiple


def dense_width(model: Model) -> int:
    """Width of the MLP of layers without experts."""
    return model.dense_width or model.ffn_hidden


def _expert_flags(model: Model) -> list[str]:
    if not model.num_experts:
        return []
    flags: list[object] = [
        "--num-experts", model.num_experts,
        "--moe-router-topk", model.experts_per_token,
        "--moe-ffn-hidden-size", model.ffn_hidden,
        "--moe-token-dispatcher-type", "alltoall",
        "--moe-grouped-gemm",
    ]  # fmt: skip
    if model.shared_ffn_hidden:
        flags += ["--moe-shared-expert-intermediate-size", model.shared_ffn_hidden]
    if model.dense_layers:
        flags += ["--moe-layer-freq", f"([0]*{model.dense_layers}+[1]*{model.layers - model.dense_layers})"]
    return [str(flag) for flag in flags]


def training_flags(plan: Plan) -> list[str]:
    """Numbers, kernels, optimizer, and how long."""
    training, options = plan.job.training, plan.options.train
    dropout, steps = training.dropout or 0.0, facts.steps(plan)
    flags: list[object] = [f"--{training.dtype}"] if training.dtype != "fp32" else []
    flags += ["--fp8-format", "hybrid"] if training.fp8 else []
    flags += ["--attention-backend", BACKENDS[training.attention]]
    flags += ["--attention-dropout", f"{dropout:g}", "--hidden-dropout", f"{dropout:g}"]
    flags += ["--optimizer", "sgd"] if training.optimizer == "sgd" else ["--optimizer", "adam"]
    if training.optimizer == "sgd":
        flags += ["--sgd-momentum", f"{options.momentum:g}"]
    else:
        flags += ["--adam-beta1", f"{options.beta1:g}", "--adam-beta2", f"{options.beta2:g}"]
    flags += ["--weight-decay", f"{options.weight_decay:g}", "--clip-grad", f"{options.grad_clip:g}"]
    flags += ["--lr", f"{options.lr:g}", "--min-lr", f"{min(options.min_lr, options.lr):g}"]
    flags += ["--lr-decay-style", options.lr_schedule, "--lr-decay-iters", steps]
    flags += ["--lr-warmup-iters", min(options.warmup_steps, steps - 1), "--train-iters", steps]
    flags += ["--seed", max(1, options.seed), "--eval-iters", 0]
    return [str(flag) for flag in flags]


def missing(plan: Plan) -> Iterator[str]:
    """Return what the options cannot express."""
    model, training = plan.job.model, plan.job.training
    if padded_vocab(plan) != model.vocab:
        yield (
            f"a vocabulary of {model.vocab:,} over tp={plan.layout.tp}: it is padded to {padded_vocab(plan):,}, "
            "which the estimate does not count"
        )
    if training.optimizer == "adam":
        yield "Adam without decoupled weight decay: its adam is AdamW"
    if model.rope_theta != round(model.rope_theta):
        yield f"a rotary base of {model.rope_theta}: it is rounded"
    if facts.recomputed_layers(plan.layout) is not None:
        yield "which layers are recomputed: it takes the first ones of each stage, as many as the plan says"
    yield "the data: --mock-data with a NullTokenizer until DATA names yours"
