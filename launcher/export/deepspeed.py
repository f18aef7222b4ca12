"""A plan for DeepSpeed: the JSON that our own engine is given; degrees beyond data belong to the model's code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

from launcher.export import facts, model_habits
from launcher.export.hostfile import HOSTFILE, hostfile
from launcher.export.ranks import SCRIPT, START_FILE, node_script, shared_files, torchrun
from launcher.export.rules import plain
from launcher.export.target import Export, Target
from launcher.layout import Layout
from launcher.layout.engines import engine_problems
from launcher.layout.job import Job
from launcher.planner.deepspeed_config import full_config, habits
from launcher.planner.habits import Setup, Table
from launcher.planner.record import Plan

CONFIG = "ds_config.json"
DS_AXES = {"tp": "model", "dp": "data", "pp": "pipe"}  # DeepSpeed's names of our axes


def cannot(job: Job, layout: Layout) -> Iterator[str]:
    """Return what DeepSpeed cannot run, or runs wrong."""
    yield from engine_problems(replace(job, training=replace(job.training, engine="deepspeed")), layout)
    if layout.cp > 1 or layout.sequence_parallel:
        found = f"layout.cp={layout.cp} layout.sequence_parallel={plain(layout.sequence_parallel)}"
        yield f"DeepSpeed's configuration cannot say {found}: set layout.cp=1 layout.sequence_parallel=false"


def write(plan: Plan) -> Export:
    config = full_config(plan, plan.options.train)
    command = [*torchrun(plan), SCRIPT, "--deepspeed", "--deepspeed_config", CONFIG]
    script = node_script(plan, command, environment=facts.allocator(plan, _table(facts.setup(plan))))
    files = {CONFIG: json.dumps(config, indent=2) + "\n", START_FILE: script, **shared_files(plan)}
    if plan.hosts:
        files[HOSTFILE] = hostfile(plan)
    return Export(CONFIG, files, tuple(missing(plan)))


def _table(setup: Setup) -> Table:
    return {**habits(setup), "expandable_segments": model_habits.SEGMENTS_OF_START}


def missing(plan: Plan) -> Iterator[str]:
    """Return what the JSON cannot express."""
    layout = plan.layout
    if layout.tp > 1:
        yield (
            f"tensor parallelism: layout.tp={layout.tp} is the model code's, which answers with an mpu "
            f'(for a Hugging Face model add "tensor_parallel": {{"autotp_size": {layout.tp}}})'
        )
    if layout.pp > 1:
        yield (
            f"the pipeline: layout.pp={layout.pp} is PipelineModule's num_stages; it starts its stages at layers "
            f"{', '.join(map(str, (0, *accumulate(layout.layer_split[:-1]))))}"
        )
    if layout.tp > 1 or layout.pp > 1:
        axes = [axis for axis in reversed(plan.grid.axes) if axis in DS_AXES]
        yield (
            f"the order of the ranks: ProcessTopology(axes={[DS_AXES[axis] for axis in axes]}, "
            f"dims={[layout.degree(axis) for axis in axes]})"
        )
    if layout.ep > 1:
        yield f"expert parallelism: layout.ep={layout.ep} is deepspeed.moe.layer.MoE's ep_size"
    if layout.recompute != "none":
        yield f"recomputation: layout.recompute={layout.recompute} is called by the model's code"
    yield "the optimizer and its learning rate: the script hands them to deepspeed.initialize"


TARGET = Target(
    name="deepspeed",
    tool="DeepSpeed",
    sources=("https://www.deepspeed.ai/docs/config-json/ (DeepSpeed 0.19.8)",),
    write=write,
    cannot=cannot,
    pins={"cp": 1, "virtual_stages": 1, "sequence_parallel": False},
    overrides=("train.engine=deepspeed",),
    habits=_table,
    profiles=("deepspeed", "launcher", "megatron_deepspeed"),
)
