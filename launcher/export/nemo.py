"""A plan for NeMo: a Megatron Bridge recipe with the plan as its overrides.

Names: Megatron Bridge 067f987 (0.7), src/megatron/bridge/training/config.py, ConfigContainer; it trains by
Megatron-LM's core, so that it can say what `megatron` can.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from launcher.export import facts, megatron, megatron_habits, megatron_training
from launcher.export.ranks import SCRIPT, START_FILE, node_script, shared_files, torchrun
from launcher.export.target import Export, Target
from launcher.layout import Layout
from launcher.model import Model
from launcher.planner.habits import Setup, Table
from launcher.planner.record import Plan

OVERRIDES = "bridge_overrides.txt"
RECIPES = {name: f"{name}_pretrain_config" for name in ("llama2_7b", "llama3_8b", "llama3_70b", "gpt3_175b")}
OVERLAP_GROUP = ("llama2_7b", "llama3_70b", "gpt3_175b")  # models with a recipe that has a CommOverlapConfig
BARE = "vanilla_gpt_pretrain_config"  # a GPT of Megatron-LM's defaults; the overrides give its shape
MIXED = {"bf16": "bf16_mixed", "fp16": "fp16_mixed"}
Setting = tuple[str, object]


def write(plan: Plan) -> Export:
    words = [f"{key}={_word(value)}" for key, value in settings(plan)]
    command = [*torchrun(plan), SCRIPT, "--recipe", recipe(plan), "--mode", "pretrain", "--dataset", "mock", *words]
    script = node_script(plan, command, environment=megatron.environment(plan), default_script="run_recipe.py")
    files = {OVERRIDES: "".join(f"{word}\n" for word in words), START_FILE: script, **shared_files(plan)}
    return Export(OVERRIDES, files, tuple(_missing(plan)))


def recipe(plan: Plan) -> str:
    """The recipe of the model's name, else the bare one."""
    return RECIPES.get(plan.job.model.name, BARE)


def settings(plan: Plan) -> list[Setting]:
    """Keys of ConfigContainer with the plan's values."""
    return [
        *_degrees(plan),
        *_stages(plan.layout),
        *_shape(plan),
        *_recompute(plan),
        *_sharding(plan),
        *_habits(plan),
        *_training(plan),
    ]


def _habits(plan: Plan) -> list[Setting]:
    """What the plan assumes of its software."""
    grouped = plan.job.model.name in OVERLAP_GROUP
    return list(facts.asked(plan, megatron_habits.bridge(facts.setup(plan), overlap_group=grouped)).items())


def _table(setup: Setup) -> Table:
    return megatron_habits.bridge(setup, overlap_group=False)


def _degrees(plan: Plan) -> list[Setting]:
    layout, training = plan.layout, plan.job.training
    experts: list[Setting] = [
        ("model.expert_model_parallel_size", layout.ep),
        ("model.expert_tensor_parallel_size", layout.tp),
    ]
    return [
        ("model.tensor_model_parallel_size", layout.tp),
        ("model.pipeline_model_parallel_size", layout.pp),
        ("model.context_parallel_size", layout.cp),
        ("model.sequence_parallel", layout.sequence_parallel),
        *(experts if plan.job.model.num_experts else []),
        ("dist.use_tp_pp_dp_mapping", megatron.pipeline_first(layout)),
        ("train.micro_batch_size", layout.micro_batch),
        ("train.global_batch_size", training.global_batch),
        ("train.train_iters", facts.steps(plan)),
    ]


def _stages(layout: Layout) -> list[Setting]:
    split = layout.layer_split
    virtual = layout.virtual_stages if layout.virtual_stages > 1 else None
    found: list[Setting] = [("model.virtual_pipeline_model_parallel_size", virtual)]
    if layout.pp == 1 or len(set(split)) == 1:
        return found
    if virtual is None and len(set(split[1:-1])) <= 1:
        return [
            *found,
            ("model.num_layers_in_first_pipeline_stage", split[0]),
            ("model.num_layers_in_last_pipeline_stage", split[-1]),
        ]
    return [*found, ("model.pipeline_model_parallel_layout", megatron.layer_letters(layout))]


def _shape(plan: Plan) -> list[Setting]:
    """The transformer's shape; a named recipe has its own."""
    model = plan.job.model
    length: list[Setting] = [("dataset.seq_length", model.seq_len), ("model.seq_length", model.seq_len)]
    if recipe(plan) != BARE:
        return length
    return [
        *length,
        ("model.num_layers", model.layers),
        ("model.hidden_size", model.hidden),
        ("model.ffn_hidden_size", megatron_training.dense_width(model)),
        ("model.num_attention_heads", model.heads),
        ("model.num_query_groups", model.kv_heads),
        ("model.kv_channels", model.head_dim),
        ("model.layernorm_epsilon", model.norm_eps),
        ("model.normalization", "RMSNorm" if model.norm == "rmsnorm" else "LayerNorm"),
        ("model.position_embedding_type", "rope" if model.positions == "rotary" else "learned_absolute"),
        ("model.rotary_base", round(model.rope_theta)),
        ("model.gated_linear_unit", model.gated_mlp),
        ("model.add_bias_linear", model.bias),
        ("model.share_embeddings_and_output_weights", model.tied_embeddings),
        ("model.num_moe_experts", model.num_experts or None),
        ("model.moe_router_topk", model.experts_per_token or 2),
        *(_experts(model) if model.num_experts else []),
        ("tokenizer.vocab_size", model.vocab),
        ("model.vocab_size", megatron_training.padded_vocab(plan)),
    ]


def _experts(model: Model) -> list[Setting]:
    kinds = ["0"] * model.dense_layers + ["1"] * (model.layers - model.dense_layers)
    return [
        ("model.moe_ffn_hidden_size", model.ffn_hidden),
        ("model.moe_shared_expert_intermediate_size", model.shared_ffn_hidden or None),
        ("model.moe_layer_freq", f"[{','.join(kinds)}]" if model.dense_layers else 1),
    ]


def _recompute(plan: Plan) -> list[Setting]:
    form, layers = plan.layout.recompute, facts.recomputed_layers(plan.layout)
    full: list[Setting] = [
        ("model.recompute_method", "uniform" if layers is None else "block"),
        ("model.recompute_num_layers", layers or 1),
    ]
    return [("model.recompute_granularity", None if form == "none" else form), *(full if form == "full" else [])]


def _sharding(plan: Plan) -> list[Setting]:
    layout = plan.layout
    found: list[Setting] = [
        ("ddp.use_distributed_optimizer", layout.zero_stage > 0),
        ("optimizer.use_distributed_optimizer", layout.zero_stage > 0),
        ("ddp.num_distributed_optimizer_instances", facts.replicas(plan)),
    ]
    if layout.zero_stage > 1:
        found += [
            ("ddp.use_megatron_fsdp", True),
            ("ddp.data_parallel_sharding_strategy", megatron.FSDP_STRATEGY[layout.zero_stage]),
            ("checkpoint.ckpt_format", "fsdp_dtensor"),
        ]
    return found


def _training(plan: Plan) -> list[Setting]:
    training, options, steps = plan.job.training, plan.options.train, facts.steps(plan)
    dropout = training.dropout or 0.0
    return [
        *([("mixed_precision", MIXED[training.dtype])] if training.dtype in MIXED else []),
        ("model.attention_dropout", dropout),
        ("model.hidden_dropout", dropout),
        ("optimizer.lr", options.lr),
        ("optimizer.min_lr", min(options.min_lr, options.lr)),
        ("optimizer.weight_decay", options.weight_decay),
        ("optimizer.adam_beta1", options.beta1),
        ("optimizer.adam_beta2", options.beta2),
        ("optimizer.clip_grad", options.grad_clip),
        ("scheduler.lr_decay_style", options.lr_schedule),
        ("scheduler.lr_warmup_iters", min(options.warmup_steps, steps - 1)),
        ("scheduler.lr_decay_iters", steps),
        ("rng.seed", max(1, options.seed)),
    ]


def _word(value: object) -> str:
    """A value in Hydra's grammar, which the overrides are read by."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"'{value}'" if isinstance(value, str) and "|" in value else str(value)


def _missing(plan: Plan) -> Iterator[str]:
    model = plan.job.model
    if recipe(plan) == BARE and model.gated_mlp:
        yield "the activation: a bare recipe has GELU, set model.activation_func in a recipe of yours for SwiGLU"
    if plan.layout.offload_optimizer:
        yield "offloading of the optimizer: set optimizer.optimizer_cpu_offload in a recipe of yours"
    yield "the data: --dataset mock until yours is named"
    yield from (line for line in megatron_training.missing(plan) if not line.startswith("the data"))


TARGET = Target(
    name="nemo",
    tool="NeMo (Megatron Bridge)",
    sources=(
        "Megatron Bridge 067f987 (0.7): src/megatron/bridge/training/config.py, ConfigContainer",
        "Megatron Bridge 067f987: scripts/training/run_recipe.py (KEY=VALUE overrides)",
        "Megatron Bridge 067f987: src/megatron/bridge/models/gpt_provider.py, GPTModelProvider",
        *megatron.TARGET.sources,
    ),
    write=write,
    cannot=megatron.cannot,
    overrides=megatron.TARGET.overrides,
    habits=_table,
    profiles=megatron.TARGET.profiles,
)
