"""A plan for Hugging Face's Trainer: TrainingArguments as JSON, started by accelerate's launcher.

Names: transformers 5.24, training_args.py. Layouts are accelerate's, which the Trainer runs on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from launcher.export import accelerate, facts, model_habits
from launcher.export.deepspeed import CONFIG as DEEPSPEED_CONFIG
from launcher.export.ranks import SCRIPT, START_FILE, node_script
from launcher.export.target import Export, Target
from launcher.planner.habits import Table, nested
from launcher.planner.record import Plan

LIGER = "liger_kernel_config"
ARGUMENTS = "training_args.json"
SCHEDULES = {"cosine": "cosine_with_min_lr", "constant": "constant_with_warmup"}
OPTIMIZERS = {"adamw": "adamw_torch", "sgd": "sgd"}


def write(plan: Plan) -> Export:
    files = dict(accelerate.write(plan).files)
    files[ARGUMENTS] = json.dumps(arguments(plan), indent=2) + "\n"
    environment = facts.allocator(plan, _table(plan))
    files[START_FILE] = node_script(plan, [*accelerate.LAUNCH, SCRIPT, ARGUMENTS], environment=environment)
    return Export(ARGUMENTS, files, tuple(_missing(plan)))


def arguments(plan: Plan) -> dict[str, Any]:
    """TrainingArguments, for HfArgumentParser(TrainingArguments).parse_json_file."""
    layout, training, options = plan.layout, plan.job.training, plan.options.train
    found: dict[str, Any] = {
        "output_dir": "out",
        "per_device_train_batch_size": layout.micro_batch,
        "gradient_accumulation_steps": layout.num_micro_batches(training.global_batch),
        "max_steps": facts.steps(plan),
        "learning_rate": options.lr,
        "lr_scheduler_type": SCHEDULES[options.lr_schedule],
        "warmup_steps": options.warmup_steps,
        "optim": OPTIMIZERS.get(training.optimizer, "adamw_torch"),
        "weight_decay": options.weight_decay,
        "adam_beta1": options.beta1,
        "adam_beta2": options.beta2,
        "max_grad_norm": options.grad_clip,
        "seed": options.seed,
        "bf16": training.dtype == "bf16",
        "fp16": training.dtype == "fp16",
        "use_cpu": plan.job.cluster.node.gpu.kind == "cpu",
        # FSDP2 recomputes by its own configuration.
        "gradient_checkpointing": layout.recompute == "full" and accelerate.kind(plan.job, layout) != "FSDP",
    }
    if options.lr_schedule == "cosine":
        found["lr_scheduler_kwargs"] = {"min_lr": min(options.min_lr, options.lr)}
    if accelerate.kind(plan.job, layout) == "DEEPSPEED":
        found["deepspeed"] = DEEPSPEED_CONFIG
    asked = nested(facts.asked(plan, _table(plan)))
    if any(asked.get(LIGER, {}).values()):  # its own default is another loss kernel
        found |= {"use_liger_kernel": True, LIGER: {**asked[LIGER], "fused_linear_cross_entropy": False}}
    return found | {"torch_compile": asked["torch_compile"]}


def _table(plan: Plan) -> Table:
    return model_habits.trainer(facts.setup(plan, deepspeed=facts.with_deepspeed(plan.job)))


def _missing(plan: Plan) -> Iterator[str]:
    layout, training = plan.layout, plan.job.training
    if layout.tp > 1:
        yield f'the tensor-parallel plan: load the model with from_pretrained(..., tp_plan="auto", tp_size={layout.tp})'
    if LIGER in arguments(plan):
        yield "the package of Liger's kernels, which fuse what the plan counts as fused: pip install liger-kernel"
    if training.optimizer == "adam":
        yield "Adam without decoupled weight decay: adamw_torch is used instead"
    yield f"the model and the data, {plan.job.model.seq_len:,} tokens a sequence: the script loads them"


TARGET = Target(
    name="hf",
    tool="Hugging Face's Trainer",
    sources=("transformers 5.24: src/transformers/training_args.py, TrainingArguments", *accelerate.TARGET.sources),
    write=write,
    cannot=accelerate.cannot,
    pins=accelerate.TARGET.pins,
    overrides=accelerate.TARGET.overrides,
    habits=model_habits.trainer,
    profiles=accelerate.TARGET.profiles,
    offloads=accelerate.TARGET.offloads,
)
