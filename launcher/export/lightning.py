"""A plan for Lightning: a module that makes the Trainer with the plan's strategy.

Names: lightning 2.6, lightning.pytorch.Trainer and strategies DDP, FSDP, ModelParallel (FSDP2 with tp) and DeepSpeed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from launcher.export import facts, model_habits
from launcher.export.deepspeed import CONFIG as DEEPSPEED_CONFIG
from launcher.export.ranks import SCRIPT, START_FILE, node_script, shared_files, torchrun
from launcher.export.rules import only, order_unknown
from launcher.export.target import Export, Target
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.planner.deepspeed_config import full_config
from launcher.planner.habits import Table
from launcher.planner.record import Plan

MODULE = "plan_trainer"
PRECISIONS = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}
SHARDING = {2: "SHARD_GRAD_OP", 3: "FULL_SHARD"}
HYBRID = {2: "_HYBRID_SHARD_ZERO2", 3: "HYBRID_SHARD"}


def cannot(job: Job, layout: Layout) -> Iterator[str]:
    """Return what Lightning cannot express."""
    yield from order_unknown(layout, tool="Lightning", known=("tp-cp-dp-pp",))
    yield from only(job, layout, tool="Lightning", why="has no pipeline", pp=1)
    yield from only(job, layout, tool="Lightning", why="has no context parallelism", cp=1)
    yield from only(job, layout, tool="Lightning", why="has no expert parallelism", ep=1)
    if layout.sharding == 1 and kind(job, layout) != "deepspeed":
        yield "Lightning has ZeRO-1 by DeepSpeed alone: set stack=deepspeed, or layout.zero_stage=2 or 3"
    if layout.tp > 1 and kind(job, layout) == "deepspeed":
        yield "Lightning has layout.tp with FSDP2 alone: set layout.zero_stage=2 or 3 and stack=fsdp"
    elif layout.tp > 1 and layout.dp > 1 and not layout.sharding:
        yield "Lightning shards over data where it has layout.tp (FSDP2): set layout.zero_stage=2 or 3"
    if layout.recompute not in ("none", "full") or facts.recomputes_some(layout):
        yield "Lightning recomputes whole layers or none: set layout.recompute=full or none"


def kind(job: Job, layout: Layout) -> str:
    """The strategy: ddp, fsdp, model_parallel or deepspeed."""
    if facts.with_deepspeed(job):
        return "deepspeed"
    if layout.tp > 1:
        return "model_parallel"
    return "fsdp" if layout.sharding else "ddp"


def write(plan: Plan) -> Export:
    script = node_script(plan, [*torchrun(plan), SCRIPT], environment=facts.allocator(plan, _table(plan)))
    files = {f"{MODULE}.py": module(plan), START_FILE: script, **shared_files(plan)}
    if kind(plan.job, plan.layout) == "deepspeed":
        config = full_config(plan, plan.options.train)
        files[DEEPSPEED_CONFIG] = json.dumps(config, indent=2) + "\n"
    return Export(f"{MODULE}.py", files, tuple(_missing(plan)))


def module(plan: Plan) -> str:
    """`from plan_trainer import make_trainer`; the trainer takes more arguments of yours."""
    strategy, made = _strategy(plan)
    training, options = plan.job.training, plan.options.train
    clips = options.grad_clip and kind(plan.job, plan.layout) == "ddp"
    wide = _wide_sums(plan)
    lines = [
        f'"""{plan.job.model.name} as {plan.layout.brief()}."""',
        "",
        *(["import torch"] if wide else []),
        "from lightning.pytorch import Trainer",
        f"from lightning.pytorch.strategies import {strategy}",
        *(["from torch.distributed.fsdp import MixedPrecision"] if wide else []),
        "",
        f"MICRO_BATCH = {plan.layout.micro_batch}  # the DataLoader's batch_size, a rank and a step forward",
        "",
        "",
        "def make_strategy(layer_classes=frozenset()):",
        '    """The plan\'s strategy; `layer_classes` are the classes of your model\'s layers, units of sharding."""',
        f"    return {made}",
        "",
        "",
        "def make_trainer(layer_classes=frozenset(), **more):",
        '    """A Trainer for the plan; `more` are arguments of yours."""',
        "    arguments = dict(",
        f"        devices={plan.placement.ranks_per_node},",
        f"        num_nodes={plan.placement.num_nodes},",
        f"        precision={PRECISIONS[training.dtype]!r},",
        f"        accumulate_grad_batches={plan.layout.num_micro_batches(training.global_batch)},",
        f"        max_steps={facts.steps(plan)},",
        *([f"        gradient_clip_val={options.grad_clip!r},"] if clips else []),
        "        strategy=more.pop('strategy', None) or make_strategy(layer_classes),",
        "    )",
        "    return Trainer(**{**arguments, **more})",
    ]
    return "\n".join(lines) + "\n"


def _strategy(plan: Plan) -> tuple[str, str]:
    """The class of the strategy, and the expression that makes it."""
    layout, replicas = plan.layout, facts.replicas(plan)
    match kind(plan.job, layout):
        case "ddp":
            return "DDPStrategy", "DDPStrategy(gradient_as_bucket_view=True)"
        case "deepspeed":
            return "DeepSpeedStrategy", f"DeepSpeedStrategy(config={DEEPSPEED_CONFIG!r})"
        case "model_parallel":
            sizes = f"data_parallel_size={layout.dp}, tensor_parallel_size={layout.tp}"
            return "ModelParallelStrategy", f"ModelParallelStrategy({sizes})"
    shard = SHARDING[layout.zero_stage] if replicas == 1 else HYBRID[layout.zero_stage]
    words = [f"sharding_strategy={shard!r}", "auto_wrap_policy=set(layer_classes)"]
    words += [f"device_mesh=({replicas}, {layout.dp // replicas})"] if replicas > 1 else []
    words += ["activation_checkpointing_policy=set(layer_classes)"] if layout.recompute == "full" else []
    words += _wide_sums(plan)
    words += ["cpu_offload=True"] if layout.offload_optimizer else []
    return "FSDPStrategy", f"FSDPStrategy({', '.join(words)})"


def _wide_sums(plan: Plan) -> list[str]:
    """The argument by which FSDP reduces in another dtype than it computes in."""
    reduce = facts.asked(plan, _table(plan)).get("reduce_dtype")
    if reduce is None:
        return []
    dtype = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}[plan.job.training.dtype]
    return [f"mixed_precision=MixedPrecision(param_dtype={dtype}, reduce_dtype={reduce}, buffer_dtype={dtype})"]


def _table(plan: Plan) -> Table:
    return model_habits.lightning(facts.setup(plan, deepspeed=facts.with_deepspeed(plan.job)))


def _missing(plan: Plan) -> Iterator[str]:
    job, layout = plan.job, plan.layout
    options = plan.options.train
    strategy = kind(job, layout)
    yield f"the micro batch: the DataLoader has batch_size=plan_trainer.MICRO_BATCH ({layout.micro_batch})"
    if strategy == "fsdp":
        yield "the unit of sharding: give make_trainer the classes of your model's layers"
    if strategy == "model_parallel":
        yield (
            "what is sharded and how: your LightningModule's configure_model does it on self.device_mesh, with "
            f"fully_shard(..., reshard_after_forward={layout.zero_stage == 3})"
        )
    if layout.recompute == "full" and strategy != "fsdp":
        yield "recomputation: the model's code calls torch.utils.checkpoint"
    if options.grad_clip and strategy in ("fsdp", "model_parallel"):
        yield f"clipping of sharded gradients: clip to {options.grad_clip:g} in your module's on_before_optimizer_step"
    yield "the optimizer and its learning rate: configure_optimizers makes them"


TARGET = Target(
    name="lightning",
    tool="Lightning",
    sources=(
        "lightning 2.6.6: lightning/pytorch/trainer/trainer.py, Trainer",
        "lightning 2.6.6: lightning/pytorch/strategies/fsdp.py, model_parallel.py, deepspeed.py",
    ),
    write=write,
    cannot=cannot,
    pins={"pp": 1, "cp": 1, "ep": 1, "virtual_stages": 1},
    overrides=("stack=fsdp",),
    habits=model_habits.lightning,
    profiles=("fsdp", "deepspeed", "launcher", "megatron_deepspeed"),
    offloads=facts.with_deepspeed,
)
