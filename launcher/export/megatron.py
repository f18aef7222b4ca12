"""A plan for Megatron-LM: the options of pretrain_gpt.py.

Names and rules: Megatron-LM d98e8a6 (core 0.20), megatron/training/arguments.py, and the dataclasses that it makes
options from: megatron/core/transformer/transformer_config.py, megatron/training/config/.
"""

from __future__ import annotations

from collections.abc import Iterator

from launcher.export import facts, megatron_habits, megatron_training, rules
from launcher.export.ranks import SCRIPT, START_FILE, node_script, options, shared_files, torchrun
from launcher.export.rules import effective, order_unknown
from launcher.export.target import Export, Target
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.planner.record import Plan

FLAGS = "megatron_flags.txt"
USUAL, PIPELINE_FIRST = "tp-cp-dp-pp", "tp-cp-pp-dp"  # without and with --use-tp-pp-dp-mapping
SOFTMAX = "NVTE_MASKED_SOFTMAX_FUSION"
FSDP_STRATEGY = {2: "optim_grads", 3: "optim_grads_params"}
Flags = list[str]


def cannot(job: Job, layout: Layout) -> Iterator[str]:
    """Return what Megatron-LM cannot express, or refuses."""
    yield from order_unknown(layout, tool="Megatron-LM", known=(USUAL, PIPELINE_FIRST))
    if layout.pp > 1 and layout.schedule not in ("1f1b", "interleaved"):
        yield f"Megatron-LM runs 1f1b, interleaved with virtual stages: set layout.schedule=1f1b, not {layout.schedule}"
    if layout.zero_stage > 1 and layout.pp > 1:
        yield (
            f"Megatron-LM shards as ZeRO-1 with a pipeline (its FSDP runs without one): set layout.zero_stage=1 or "
            f"layout.pp=1, not layout.zero_stage={layout.zero_stage} with layout.pp={layout.pp}"
        )
    if layout.ep > 1 and layout.cp > 1:
        yield (
            "Megatron-LM cuts expert groups out of dp × cp, the plan out of dp: set layout.cp=1 or layout.ep=1, not "
            f"layout.cp={layout.cp} with layout.ep={layout.ep}"
        )
    if job.model.num_experts and layout.tp > 1 and not layout.sequence_parallel:
        yield "Megatron-LM trains experts under tensor parallelism with layout.sequence_parallel=true only: set it"
    if layout.recompute == "op":
        yield "Megatron-LM has no layout.recompute=op: set layout.recompute=selective or full"
    if facts.recomputed_layers(layout) == 0 or (facts.recomputes_some(layout) and layout.recompute == "selective"):
        yield (
            f"Megatron-LM recomputes a whole number of layers of each stage, in full: set layout.recompute_fraction=1, "
            f"not {layout.recompute_fraction:g} of {rules.plain(layout.layer_split)}"
        )
    if layout.offload_optimizer and layout.zero_stage != 1:
        yield "Megatron-LM offloads its distributed optimizer alone: set layout.zero_stage=1"


def write(plan: Plan) -> Export:
    flags = [*layout_flags(plan), *megatron_training.model_flags(plan), *megatron_training.training_flags(plan)]
    data = (
        "DATA=(${DATA:---mock-data --tokenizer-type NullTokenizer})  # yours: DATA='--data-path … --tokenizer-type …'"
    )
    command = [*torchrun(plan), SCRIPT, *flags, "${DATA[@]}"]
    script = node_script(plan, command, environment=environment(plan), before=[data], default_script="pretrain_gpt.py")
    files = {FLAGS: " \\\n".join(options(flags)) + "\n", START_FILE: script, **shared_files(plan)}
    return Export(FLAGS, files, tuple(megatron_training.missing(plan)))


def layout_flags(plan: Plan) -> Flags:
    """Degrees, rank order, stages, sharding and recomputation."""
    layout = plan.layout
    flags: list[object] = [
        "--tensor-model-parallel-size", layout.tp,
        "--pipeline-model-parallel-size", layout.pp,
        "--context-parallel-size", layout.cp,
    ]  # fmt: skip
    if layout.ep > 1 or plan.job.model.num_experts:
        flags += ["--expert-model-parallel-size", layout.ep, "--expert-tensor-parallel-size", layout.tp]
    if pipeline_first(layout):
        flags.append("--use-tp-pp-dp-mapping")
    flags += ["--sequence-parallel"] if layout.sequence_parallel else []
    flags += ["--micro-batch-size", layout.micro_batch, "--global-batch-size", plan.job.training.global_batch]
    return [str(flag) for flag in flags] + stage_flags(layout) + habit_flags(plan) + _sharding(plan) + _recompute(plan)


def habit_flags(plan: Plan) -> Flags:
    """What the plan assumes of its software."""
    return list(facts.asked(plan, megatron_habits.megatron(facts.setup(plan))))


def stage_flags(layout: Layout) -> Flags:
    """Layers of the (virtual) stages: nothing where equal, the ends where these alone differ, else a whole layout."""
    split, stages = layout.layer_split, layout.pp * layout.virtual_stages
    if stages == 1:
        return []
    if len(set(split)) == 1:
        return [] if layout.virtual_stages == 1 else ["--num-layers-per-virtual-pipeline-stage", str(split[0])]
    middle = set(split[1:-1])
    if layout.virtual_stages == 1 and len(middle) <= 1:
        ends = ("--decoder-first-pipeline-num-layers", split[0], "--decoder-last-pipeline-num-layers", split[-1])
        return [str(word) for word in ends]
    return ["--pipeline-model-parallel-layout", layer_letters(layout)]


def layer_letters(layout: Layout) -> str:
    """Every (virtual) stage as letters: E the embedding, t a layer, L the loss; | ends a stage."""
    return "E" + "|".join("t" * count for count in layout.layer_split) + "L"


def pipeline_first(layout: Layout) -> bool:
    """Whether ranks are numbered along the pipeline before data."""
    return effective(layout, layout.axis_order) != effective(layout, USUAL)


def _sharding(plan: Plan) -> Flags:
    layout, replicas = plan.layout, facts.replicas(plan)
    if layout.sharding == 0 and not layout.offload_optimizer:
        return []
    flags = ["--use-distributed-optimizer"]  # which offloads over one rank too
    if 0 < layout.sharding < 3 and "--overlap-grad-reduce" in habit_flags(plan):
        flags.append("--overlap-param-gather")
    if layout.zero_stage > 1:
        strategy = FSDP_STRATEGY[layout.zero_stage]
        flags += ["--use-megatron-fsdp", "--data-parallel-sharding-strategy", strategy, "--ckpt-format", "fsdp_dtensor"]
    if replicas > 1:
        flags += ["--num-distributed-optimizer-instances", str(replicas)]
    if layout.offload_optimizer:
        flags += ["--optimizer-cpu-offload", "--use-precision-aware-optimizer"]
    return flags


def _recompute(plan: Plan) -> Flags:
    form, layers = plan.layout.recompute, facts.recomputed_layers(plan.layout)
    if form == "selective":
        return ["--recompute-granularity", "selective"]
    if form != "full":
        return []
    method = (
        ["uniform", "--recompute-num-layers", "1"]
        if layers is None
        else ["block", "--recompute-num-layers", str(layers)]
    )
    return ["--recompute-granularity", "full", "--recompute-method", *method]


def environment(plan: Plan) -> dict[str, str]:
    """Its collectives wait for the products queued before them with one connection; FSDP refuses that.

    Transformer Engine's unfused attention has a fused softmax (pytorch/softmax.py, FusedScaleMaskSoftmax).
    """
    found = facts.allocator(plan, megatron_habits.megatron(facts.setup(plan)))
    if plan.layout.zero_stage < 2:
        found["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    return found | ({SOFTMAX: "0"} if plan.job.training.attention == "math" else {})


TARGET = Target(
    name="megatron",
    tool="Megatron-LM",
    sources=(
        "Megatron-LM d98e8a6 (core 0.20): megatron/training/arguments.py",
        "Megatron-LM d98e8a6: megatron/core/transformer/transformer_config.py, megatron/training/config/",
        "Megatron-LM d98e8a6: megatron/core/transformer/pipeline_parallel_layer_layout.py",
    ),
    write=write,
    cannot=cannot,
    overrides=("stack=megatron_lm",),
    habits=megatron_habits.megatron,
    profiles=("megatron_lm",),
)
