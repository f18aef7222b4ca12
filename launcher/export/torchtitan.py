"""A plan for torchtitan: command line flags, and the configuration function that says what flags cannot.

Names and meanings: torchtitan 0.3.0, the release of September 2026, torchtitan/config/configs.py. Its TOML files are
gone; its README calls the flags frozen and the function the way to configure a run. Commit b5bcd76 counts in tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from math import isclose

from launcher.export import facts, torchtitan_habits
from launcher.export.ranks import START_FILE, node_script, options, shared_files, torchrun
from launcher.export.rules import order_unknown
from launcher.export.target import Export, Target
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.planner.habits import Table
from launcher.planner.record import Plan

FLAGS, MODULE, FUNCTION = "torchtitan_flags.txt", "plan_config", "plan"
SCHEDULES = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved": "Interleaved1F1B"}
RECOMPUTE = {"none": "none", "op": "selective", "full": "full"}
CHECKPOINTING = {"none": "None", "op": "SelectiveAC.Config()", "full": "FullAC.Config()"}
KNOWN = {"llama3_8b": "llama3", "llama3_70b": "llama3", "llama3_405b": "llama3"}  # model → module of its function
Setting = tuple[str, object]


def cannot(job: Job, layout: Layout) -> Iterator[str]:
    """Return what torchtitan cannot express."""
    yield from order_unknown(layout, tool="torchtitan", known=("tp-cp-dp-pp",))
    if layout.sharding == 1:
        yield "torchtitan shards gradients and optimizer together (FSDP2): set layout.zero_stage=2, 3 or 0, not 1"
    if layout.pp > 1 and layout.schedule not in SCHEDULES:
        yield f"torchtitan runs {layout.schedule} with several stages a rank alone: set layout.schedule=1f1b"
    if layout.recompute not in RECOMPUTE or facts.recomputes_some(layout):
        yield "torchtitan recomputes whole layers, by operator, or nothing: set layout.recompute=full, op or none"
    if layout.ep > 1 and (layout.tp > 1 or layout.cp > 1):
        yield (
            f"torchtitan cuts expert groups out of dp × cp × tp, the plan out of dp: set layout.ep=1 or layout.tp=1 "
            f"layout.cp=1, not layout.ep={layout.ep} with layout.tp={layout.tp} layout.cp={layout.cp}"
        )
    if layout.cp > 1 and layout.zero_stage < 2:
        yield "torchtitan shards over cp wherever it is used: set layout.zero_stage=2 or 3 with layout.cp"
    if layout.tp > 1 and job.stack.tp_overlap == "async" and not job.stack.compile:
        yield f"{torchtitan_habits.UNCOMPILED}, or stack.tp_overlap=none"
    if job.training.dtype == "fp16":
        yield "torchtitan has no fp16: set train.dtype=bf16"


def write(plan: Plan) -> Export:
    command = [*torchrun(plan), "-m", "torchtitan.train", "--module", MODULE, "--config", FUNCTION]
    script = node_script(plan, command, environment=facts.allocator(plan, _table(plan)))
    files = {
        FLAGS: " \\\n".join(options(flags(plan))) + "\n",
        f"{MODULE}.py": config_function(plan),
        START_FILE: script,
        **shared_files(plan),
    }
    return Export(FLAGS, files, tuple(_missing(plan)))


def flags(plan: Plan) -> list[str]:
    """The plan as command line flags; the form of recomputation is a subcommand and comes last."""
    words = []
    for key, value in settings(plan):
        if isinstance(value, bool):
            section, _, option = key.rpartition(".")
            words.append(f"--{section}.{'' if value else 'no-'}{option}")
        else:
            words += [f"--{key}", *(value if isinstance(value, list) else [str(value)])]
    return [*words, f"activation-checkpoint:{RECOMPUTE[plan.layout.recompute]}"]


def settings(plan: Plan) -> list[Setting]:
    """Keys of Trainer.Config with their values."""
    layout, training = plan.layout, plan.job.training
    replicas = facts.replicas(plan) if layout.sharding else layout.dp
    found: list[Setting] = [
        ("parallelism.data_parallel_replicate_degree", replicas),
        ("parallelism.data_parallel_shard_degree", layout.dp // replicas),
        ("parallelism.fsdp_reshard_after_forward", "always" if layout.zero_stage == 3 else "never"),
        ("parallelism.tensor_parallel_degree", layout.tp),
        ("parallelism.enable_sequence_parallel", layout.sequence_parallel),
        ("parallelism.context_parallel_degree", layout.cp),
        ("parallelism.pipeline_parallel_degree", layout.pp),
        *_pipeline(layout),
        ("parallelism.expert_parallel_degree", layout.ep),
        ("training.local_batch_size", _passed_at_once(layout, training.global_batch)),
        ("training.global_batch_size", training.global_batch),
        ("training.seq_len", plan.job.model.seq_len),
        ("training.steps", facts.steps(plan)),
        ("training.mixed_precision_param", "bfloat16" if training.dtype == "bf16" else "float32"),
    ]
    if layout.pp > 1 or layout.ep > 1:
        found.append(("training.disable_cuda_graphs", True))  # it has none of them with a pipeline
    return [*found, *facts.asked(plan, _table(plan)).items(), *_how(plan)]


def _table(plan: Plan) -> Table:
    return torchtitan_habits.torchtitan(facts.setup(plan))


def _passed_at_once(layout: Layout, global_batch: int) -> int:
    """Return the sequences of a rank between two steps of accumulation: all of a step where a pipeline cuts them."""
    return layout.micro_batch if layout.pp == 1 else global_batch // layout.dp


def _pipeline(layout: Layout) -> list[Setting]:
    if layout.pp == 1:
        return []
    found: list[Setting] = [
        ("parallelism.pipeline_parallel_schedule", SCHEDULES[layout.schedule]),
        ("parallelism.pipeline_parallel_microbatch_size", layout.micro_batch),
    ]
    if len(set(layout.layer_split)) == 1:
        found += [
            ("parallelism.pipeline_parallel_first_stage_less_layers", 0),
            ("parallelism.pipeline_parallel_last_stage_less_layers", 0),
            ("parallelism.pipeline_parallel_layers_per_stage", layout.layer_split[0]),
        ]
    return found


def _how(plan: Plan) -> list[Setting]:
    options = plan.options.train
    cosine = options.lr_schedule == "cosine"
    found: list[Setting] = [
        ("training.max_norm", options.grad_clip),
        ("lr_scheduler.warmup_steps", min(options.warmup_steps, facts.steps(plan))),
        ("lr_scheduler.decay_type", "cosine" if cosine else "linear"),
        ("lr_scheduler.min_lr_factor", min(1.0, options.min_lr / options.lr) if cosine and options.lr else 1.0),
        ("debug.seed", options.seed),
    ]
    return found


def config_function(plan: Plan) -> str:
    """Return a module with a function for the configuration: a registered model's, with the plan's settings."""
    options, name = plan.options.train, plan.job.model.name
    known = KNOWN.get(name)
    base = f"torchtitan.models.{known}.config_registry" if known else "my_models"
    yours = "" if known else "  # yours: a function that returns a Trainer.Config with this model"
    form = CHECKPOINTING[plan.layout.recompute]
    lines = [
        f'"""{name} as {plan.layout.brief()}: --module {MODULE} --config {FUNCTION}"""',
        "",
        "from torchtitan.components.optimizer import default_adamw",
        *(
            [f"from torchtitan.distributed.activation_checkpoint import {form.partition('.')[0]}"]
            if form != "None"
            else []
        ),
        "from torchtitan.trainer import Trainer",
        "",
        f"from {base} import {name}{yours}",
        "",
        "",
        f"def {FUNCTION}() -> Trainer.Config:",
        f"    config = {name}()",
        *(f"    config.{key} = {value!r}" for key, value in settings(plan)),
        *_stages(plan.layout),
        f"    config.activation_checkpoint = {form}",
        f"    config.optimizer = default_adamw(lr={options.lr!r}, betas=({options.beta1!r}, {options.beta2!r}), "
        f"weight_decay={options.weight_decay!r})",
        "    return config",
    ]
    return "\n".join(lines) + "\n"


def _stages(layout: Layout) -> list[str]:
    """The modules of each stage, where the split is uneven."""
    if layout.pp == 1 or len(set(layout.layer_split)) == 1:
        return []
    starts = [0, *accumulate(layout.layer_split)]
    stages = [[f"layers.{layer}" for layer in range(a, b)] for a, b in pairwise(starts)]
    stages[0].insert(0, "tok_embeddings")
    stages[-1] += ["norm", "lm_head"]
    return [
        "    config.parallelism.module_fqns_per_model_part = [",
        *("        [" + ", ".join(f'"{module}"' for module in stage) + "]," for stage in stages),
        "    ]",
    ]


def _missing(plan: Plan) -> Iterator[str]:
    model, training, layout = plan.job.model, plan.job.training, plan.layout
    options = plan.options.train
    if model.name not in KNOWN:
        yield f"the model {model.name}: it has none of that name, name your function for it in {MODULE}.py"
    if layout.pp > 1 and len(set(layout.layer_split)) > 1:
        yield f"the stages {list(layout.layer_split)} in flags: {MODULE}.py says them"
    yield f"the optimizer in flags: {MODULE}.py says it"
    if training.optimizer != "adamw":
        yield f"train.optimizer={training.optimizer}: {MODULE}.py has AdamW, say yours there"
    if options.lr_schedule == "constant" and not isclose(options.min_lr, options.lr):
        yield "a constant learning rate by name: lr_scheduler.min_lr_factor=1 is used instead"


TARGET = Target(
    name="torchtitan",
    tool="torchtitan",
    sources=(
        "torchtitan 0.3.0: torchtitan/config/configs.py, ParallelismConfig and TrainingConfig",
        "torchtitan 0.3.0: torchtitan/config/README.md (flags are frozen, functions configure a run)",
        "torchtitan 0.3.0: torchtitan/distributed/parallel_dims.py (rank order), pipeline_parallel.py (stages)",
    ),
    write=write,
    cannot=cannot,
    overrides=("stack=torchtitan",),
    habits=torchtitan_habits.torchtitan,
    profiles=("torchtitan",),
    offloads=lambda job: False,
)
