"""A plan for Hugging Face accelerate: DDP, FSDP2 with `parallelism_config`, or the DeepSpeed plugin.

accelerate numbers ranks as (dp_replicate, dp_shard, cp, tp), the last the fastest (parallelism_config.py, _get_mesh).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.export import facts, model_habits
from launcher.export.deepspeed import CONFIG as DEEPSPEED_CONFIG
from launcher.export.ranks import (
    ADDRESS,
    NODE,
    PORT,
    PORT_VARIABLE,
    SCRIPT,
    START_FILE,
    node_script,
    shared_files,
)
from launcher.export.rules import only, order_unknown
from launcher.export.target import Export, Target
from launcher.export.yaml_text import to_yaml
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.planner.deepspeed_config import full_config
from launcher.planner.habits import Table, nested
from launcher.planner.record import Plan

CONFIG = "accelerate.yaml"
LAUNCH = (
    "accelerate", "launch",
    "--config_file", CONFIG,
    "--machine_rank", NODE,
    "--main_process_ip", ADDRESS,
    "--main_process_port", PORT_VARIABLE,
)  # fmt: skip
Yaml = Mapping[str, Any]


def cannot(job: Job, layout: Layout) -> Iterator[str]:
    """Return what accelerate cannot express."""
    yield from order_unknown(layout, tool="accelerate", known=("tp-cp-dp-pp",))
    yield from only(job, layout, tool="accelerate", why="has no pipeline", pp=1)
    yield from only(job, layout, tool="accelerate", why="has no expert parallelism", ep=1)
    if layout.recompute not in ("none", "full") or facts.recomputes_some(layout):
        yield "accelerate recomputes every layer whole, or none: set layout.recompute=full or none"
    if layout.sharding == 1 and not facts.with_deepspeed(job):
        yield ("accelerate has ZeRO-1 by DeepSpeed's plugin alone: set stack=deepspeed, or layout.zero_stage=2 or 3")
    meshed = layout.tp > 1 or layout.cp > 1
    if meshed and facts.with_deepspeed(job):
        yield (
            f"accelerate has layout.tp and layout.cp in FSDP2 alone, which shards as ZeRO 2 and 3: set "
            f"layout.zero_stage=2 or 3 and stack=fsdp, not layout.zero_stage={layout.zero_stage}"
        )
    elif meshed and layout.zero_stage < 2 and layout.dp * layout.cp > 1:
        yield (
            f"accelerate has no plain data parallelism with layout.tp={layout.tp} layout.cp={layout.cp}: "
            "set layout.zero_stage=2 or 3"
        )
    if layout.sequence_parallel:
        yield (
            "accelerate leaves sequence parallelism to the model's own tensor-parallel plan: "
            "set layout.sequence_parallel=false"
        )


def write(plan: Plan) -> Export:
    job, layout = plan.job, plan.layout
    plugin = facts.with_deepspeed(job)
    files = {CONFIG: to_yaml(_config(plan))}
    if plugin:
        config = full_config(plan, plan.options.train)
        files[DEEPSPEED_CONFIG] = json.dumps(config, indent=2) + "\n"
    # `Accelerator` reads it where the script gives none; the plugin has it in its own JSON.
    steps = str(layout.num_micro_batches(job.training.global_batch))
    environment = {} if plugin else {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": steps}
    environment |= facts.allocator(plan, _table(plan))
    files[START_FILE] = node_script(plan, [*LAUNCH, SCRIPT], environment=environment)
    return Export(CONFIG, files | shared_files(plan), tuple(_missing(plan)))


def _config(plan: Plan) -> Yaml:
    job, layout = plan.job, plan.layout
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kind(job, layout),
        "num_machines": plan.placement.num_nodes,
        "num_processes": layout.world_size,  # of all machines
        "machine_rank": 0,
        "main_process_port": PORT,
        "rdzv_backend": "static",  # keeps the order of the machines
        "main_training_function": "main",
        "use_cpu": job.cluster.node.gpu.kind == "cpu",
    }
    if plan.hosts:
        config["main_process_ip"] = plan.hosts[0]
    config |= {key: value for key, value in nested(facts.asked(plan, _table(plan))).items() if key == "dynamo_config"}
    if kind(job, layout) == "DEEPSPEED":
        return config | {"deepspeed_config": {"deepspeed_config_file": DEEPSPEED_CONFIG, "zero3_init_flag": False}}
    config["mixed_precision"] = "no" if job.training.dtype == "fp32" else job.training.dtype
    return config | (_fsdp(plan) if kind(job, layout) == "FSDP" else {})


def _table(plan: Plan) -> Table:
    return model_habits.accelerate(facts.setup(plan, deepspeed=facts.with_deepspeed(plan.job)))


def kind(job: Job, layout: Layout) -> str:
    if layout.world_size == 1 and not (layout.offload_optimizer and facts.with_deepspeed(job)):
        return "NO"
    if facts.with_deepspeed(job):
        return "DEEPSPEED"
    if layout.sharding or layout.tp > 1 or layout.cp > 1:
        return "FSDP"
    return "MULTI_CPU" if job.cluster.node.gpu.kind == "cpu" else "MULTI_GPU"


def _fsdp(plan: Plan) -> dict[str, Any]:
    layout = plan.layout
    replicas = facts.replicas(plan)
    fsdp = {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": layout.zero_stage == 3,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_activation_checkpointing": layout.recompute == "full",
        "fsdp_offload_params": layout.offload_optimizer,
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    }
    degrees = {"dp_replicate": replicas, "dp_shard": layout.dp // replicas, "cp": layout.cp, "tp": layout.tp}
    return {
        "fsdp_config": fsdp,
        "parallelism_config": {f"parallelism_config_{axis}_size": degree for axis, degree in degrees.items()},
    }


def _missing(plan: Plan) -> Iterator[str]:
    layout = plan.layout
    yield f"the micro batch: the script's DataLoader has batch_size={layout.micro_batch} (a rank and a step forward)"
    if layout.tp > 1:
        yield f'the tensor-parallel plan: load the model with from_pretrained(..., tp_plan="auto", tp_size={layout.tp})'
    if layout.recompute == "full" and kind(plan.job, layout) != "FSDP":
        yield "recomputation: call model.gradient_checkpointing_enable()"
    clip = plan.options.train.grad_clip
    if kind(plan.job, layout) != "DEEPSPEED" and clip:
        yield f"clipping: call accelerator.clip_grad_norm_(model.parameters(), {clip:g})"
    yield "the optimizer and its learning rate: the script makes them"


TARGET = Target(
    name="accelerate",
    tool="accelerate",
    sources=(
        "accelerate 1.15.0: src/accelerate/commands/config/config_args.py, ClusterConfig",
        "accelerate 1.15.0: src/accelerate/parallelism_config.py, ParallelismConfig",
        "https://huggingface.co/docs/accelerate/concept_guides/context_parallelism",
    ),
    write=write,
    cannot=cannot,
    pins={"pp": 1, "virtual_stages": 1, "ep": 1, "sequence_parallel": False},
    overrides=("stack=fsdp",),
    habits=model_habits.accelerate,
    profiles=("fsdp", "deepspeed", "launcher", "megatron_deepspeed"),
    offloads=facts.with_deepspeed,
)
