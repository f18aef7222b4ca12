"""Flags of Megatron-LM that `from=` knows: those that are read, those that it names, those that change nothing here."""

from __future__ import annotations

from launcher.export.megatron_habits import megatron
from launcher.planner.habits import Option, Setup

NUMBERS = {
    "--tensor-model-parallel-size": "layout.tp",
    "--pipeline-model-parallel-size": "layout.pp",
    "--context-parallel-size": "layout.cp",
    "--expert-model-parallel-size": "layout.ep",
    "--micro-batch-size": "layout.micro_batch",
    "--global-batch-size": "train.global_batch",
    "--num-virtual-stages-per-pipeline-rank": "layout.virtual_stages",
    "--num-layers": "model.layers",
    "--hidden-size": "model.hidden",
    "--ffn-hidden-size": "model.ffn_hidden",
    "--num-attention-heads": "model.heads",
    "--num-query-groups": "model.kv_heads",
    "--kv-channels": "model.head_dim",
    "--seq-length": "model.seq_len",
    "--rotary-base": "model.rope_theta",
    "--num-experts": "model.num_experts",
    "--moe-router-topk": "model.experts_per_token",
    "--moe-shared-expert-intermediate-size": "model.shared_ffn_hidden",
}
# Other flags that are read, by the functions below and the table of habits.
READ = frozenset(
    ("--sequence-parallel", "--bf16", "--fp16", "--use-tp-pp-dp-mapping", "--optimizer", "--fp8-format",
     "--num-layers-per-virtual-pipeline-stage", "--decoder-first-pipeline-num-layers",
     "--decoder-last-pipeline-num-layers", "--pipeline-model-parallel-layout", "--use-distributed-optimizer",
     "--use-megatron-fsdp", "--data-parallel-sharding-strategy", "--use-torch-fsdp2",
     "--torch-fsdp2-no-reshard-after-forward", "--optimizer-cpu-offload", "--swiglu", "--disable-bias-linear",
     "--no-masked-softmax-fusion", "--transformer-impl", "--attention-backend", "--use-flash-attn",
     "--normalization", "--overlap-param-gather", "--recompute-granularity", "--recompute-activations",
     "--recompute-method", "--recompute-num-layers", "--use-rotary-position-embeddings",
     "--position-embedding-type", "--padded-vocab-size", "--vocab-size", "--untie-embeddings-and-output-weights",
     "--group-query-attention", "--moe-ffn-hidden-size", "--moe-layer-freq", "--deepspeed", "--deepspeed_config",
     "--deepspeed-config", "--zero-stage", "--checkpoint-activations", "--activations-checkpoint-method",
     "--no-pipeline-parallel", "--deepspeed-activation-checkpointing")
)  # fmt: skip
# Flags that change what is trained or how fast, and have no key of ours.
TELLING = ("--multi-latent-attention", "--expert-tensor-parallel-size", "--mtp-num-layers", "--hybrid-layer-pattern",
           "--cp-comm-type", "--window-size", "--recompute-modules",
           "--num-distributed-optimizer-instances", "--no-bias-dropout-fusion", "--cross-entropy-fusion-impl",
           "--no-overlap-p2p-communication", "--ddp-bucket-size", "--disable-jit-fuser", "--no-persist-layer-norm",
           "--keep-fp8-transpose-cache")  # fmt: skip
HABITS = frozenset(
    name
    for gated in (True, False)
    for stage in (0, 3)
    for entry in megatron(Setup(gated=gated, bias=True, zero_stage=stage, sequence_parallel=True)).values()
    if isinstance(entry, Option)
    for name in (*(name for settings in entry.settings.values() for name in settings), *entry.earlier)
) | {"--accumulate-allreduce-grads-in-fp32", "--grad-reduce-in-bf16"}
# Of data, logs, files and learning, which change neither time nor memory, by their beginnings.
FREE = (
    "--DDP-impl", "--adam-", "--apply-layernorm-1p", "--async-save", "--attention-dropout", "--auto-detect-ckpt",
    "--bert", "--blend", "--bos", "--check-weight-hash", "--ckpt", "--clip-grad", "--clone-scatter", "--config",
    "--data-", "--dataloader", "--dataset", "--decoupled", "--deterministic", "--dist-ckpt",
    "--distribute-saved-activations", "--distributed-", "--end-weight-decay", "--eod", "--eps", "--eval-",
    "--exit-", "--extra-vocab", "--finetune", "--global-", "--hidden-dropout", "--hysteresis", "--inference",
    "--init-", "--initial-", "--lazy-mpu", "--load", "--local-rank", "--log-", "--loss-scale", "--lr", "--make-",
    "--manual-gc", "--master", "--max-", "--max_", "--merge-file", "--min-loss-scale", "--min-lr", "--mmap",
    "--mock-data", "--module", "--moe-aux-loss-coeff", "--moe-grouped-gemm", "--moe-permute-fusion",
    "--moe-router-", "--moe-token-dispatcher-type", "--moe-z-loss", "--nnodes", "--no-check", "--no-create",
    "--no-initialization", "--no-load", "--no-mmap", "--no-position-embedding", "--no-python",
    "--no-query-key-layer-scaling", "--no-save", "--node", "--non-persistent", "--norm-epsilon", "--nproc",
    "--num-dataset", "--num-workers", "--one-logger", "--override", "--pad-", "--patch-", "--per-split",
    "--profile", "--qk-layernorm", "--query-in-block-prob", "--rampup", "--rdzv", "--recompute-mtp", "--redirects",
    "--rerun", "--reset-", "--role", "--rotary-", "--s3-cache", "--save", "--seed", "--sgd-momentum",
    "--short-seq-prob", "--skip-train", "--spec", "--special", "--split", "--standalone", "--start-weight-decay",
    "--straggler", "--tee", "--tensorboard", "--test-data", "--tiktoken", "--timing", "--tokenizer", "--train-",
    "--use-checkpoint", "--use-cpu-initialization", "--use-dist-ckpt", "--use-legacy-models", "--use-mcore-models",
    "--use-one-sent", "--use-precision-aware-optimizer", "--use-rope-scaling", "--valid-", "--verify",
    "--vocab-extra", "--vocab-file", "--wandb", "--warmup", "--weight-decay",
)  # fmt: skip


def is_known(name: str) -> bool:
    """Whether a flag is read, named where it is there, or without a part in time and memory."""
    return name in NUMBERS or name in READ or name in TELLING or name in HABITS or name.startswith(FREE)
