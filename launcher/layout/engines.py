"""Layouts and jobs that training software cannot run, or silently trains wrong. Torch-free: checked before any start.

`engine_problems` applies to every user of the engine and is part of a layout's legality. `stack_problems` applies to
what the stack `launcher` trains itself, with any recipe; other layouts can still be estimated. `job_problems` are
those that no layout avoids.

Each rule was found by training: torch 2.13.0 and DeepSpeed 0.19.8 against one process, SGD with clipping, on CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

from launcher.layout.degrees import Layout
from launcher.layout.job import Job
from launcher.stacks import stack_of

OWN = "launcher"  # the stack that these rules are about
Rule = Callable[[Job, Layout], Iterator[str]]


def engine_problems(job: Job, layout: Layout) -> list[str]:
    """Return every reason why the engine of `job` cannot train `layout`, with the alternatives; empty if it can."""
    return [message for rule in ENGINES.get(job.training.engine, ()) for message in rule(job, layout)]


def stack_problems(job: Job, layout: Layout) -> list[str]:
    """Return every reason why our software cannot run `layout`; empty for other software, which is not checked."""
    if job.stack.name != OWN:
        return []
    rules = (*COMMON, *STACK_ENGINES.get(job.training.engine, ()))
    return [message for rule in rules for message in rule(job, layout)]


def job_problems(job: Job) -> list[str]:
    """Return every reason why our engines cannot train `job` under any layout."""
    return [*_experts(job), *_numbers(job), *habit_problems(job)]


def habit_problems(job: Job) -> list[str]:
    """Return every property of the job's stack that our engines do not have."""
    return list(_habits(job))


def _experts(job: Job) -> Iterator[str]:
    if job.model.num_experts:
        yield (
            f"the launcher's engines cannot train mixtures of experts ({job.model.name} has {job.model.num_experts}): "
            "only plan it, or run your own script"
        )


def _numbers(job: Job) -> Iterator[str]:
    if job.training.dtype == "fp16":
        yield "train.dtype=fp16 needs loss scaling, which the launcher's engines lack: set train.dtype=bf16 (or fp32)"
    if job.training.fp8:
        yield (
            "train.gemm_dtype=fp8: the launcher's engines compute products in train.dtype: set train.gemm_dtype=auto, "
            "or run your own script"
        )
    if job.training.dropout:
        yield f"train.dropout={job.training.dropout}: the launcher's engines do not apply dropout: set it to auto or 0"


def _habits(job: Job) -> Iterator[str]:
    """Yield a problem for each property that the user set and the engines do not have."""
    built = stack_of(OWN, year=job.stack.year, engine=job.training.engine)
    for habit in (field.name for field in fields(built) if field.name not in ("name", "year")):
        asked, has = getattr(job.stack, habit), getattr(built, habit)
        if job.stack.name == OWN and asked != has:
            yield f"stack.{habit}={_plain(asked)}: the launcher's engines are built with {_plain(has)}: leave it auto"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _heads(job: Job, layout: Layout) -> Iterator[str]:
    if layout.tp > 1 and job.model.kv_heads % layout.tp:
        yield (
            f"layout.tp={layout.tp} does not divide the {job.model.kv_heads} key-value heads of {job.model.name}; the "
            "launcher's engines do not repeat them over ranks: choose a tp that divides them"
        )


def _recompute(job: Job, layout: Layout) -> Iterator[str]:
    if layout.recompute == "op" or (layout.recompute != "none" and layout.recompute_fraction < 1):
        yield (
            f"layout.recompute={layout.recompute} with layout.recompute_fraction={layout.recompute_fraction:g}: the "
            "launcher's engines recompute every layer, by its attention core or whole: set recompute_fraction=1 and "
            "recompute to none, selective or full"
        )


def _shard_group(job: Job, layout: Layout) -> Iterator[str]:
    if layout.shard_group and layout.sharding and layout.cp > 1:
        yield (
            f"layout.shard_group={layout.shard_group} does not work with layout.cp={layout.cp}: set layout.cp=1, or "
            "layout.shard_group=all, which shards over dp × cp"
        )
    if layout.shard_group and layout.sharding and job.training.engine == "deepspeed":
        yield (
            f"layout.shard_group={layout.shard_group}: the DeepSpeed engine shards over all of dp: "
            "set layout.shard_group=all, or train.engine=torch"
        )


def _torch_pipeline(job: Job, layout: Layout) -> Iterator[str]:
    if layout.pp == 1:
        return
    count, stages = layout.num_micro_batches(job.training.global_batch), layout.pp * layout.virtual_stages
    if stages > job.model.layers:
        yield (
            f"our torch engine has no stage without a layer: {stages} stages for {job.model.layers} layers: "
            "lower layout.virtual_stages"
        )
    if layout.schedule == "1f1b" and count < stages:
        yield (
            f"torch's 1f1b needs at least as many micro-batches as stages: {count} micro-batches, {stages} stages; "
            "lower dp or micro_batch, raise train.global_batch, or set layout.schedule=gpipe"
        )
    if layout.schedule in ("interleaved", "zb_h1") and count % max(1, count // layout.pp):
        yield (
            f"torch's {layout.schedule} runs {count} micro-batches in {count // layout.pp} rounds, which must be "
            f"equal: make the number of micro-batches a multiple of pp={layout.pp}"
        )


def _torch_offload(job: Job, layout: Layout) -> Iterator[str]:
    if layout.offload_optimizer:
        yield (
            "layout.offload_optimizer=true: the torch engine keeps its optimizer on the device: "
            "set train.engine=deepspeed and layout.zero_stage=1, 2 or 3"
        )


def _deepspeed_pipeline(job: Job, layout: Layout) -> Iterator[str]:
    if layout.pp == 1:
        return
    if layout.zero_stage == 0:
        # Its norm covers only the first stage (0.2102 reported, 0.5589 true): losses drift by 5e-2 in ten steps.
        yield (
            "DeepSpeed's pipeline with ZeRO-0 clips by the norm of the first stage only and trains wrong: "
            "set layout.zero_stage=1, layout.pp=1, or train.engine=torch"
        )
    elif layout.zero_stage > 1:
        yield (
            f"DeepSpeed's pipeline does not run with ZeRO-{layout.zero_stage}: "
            "set layout.zero_stage=1, layout.pp=1, or train.engine=torch"
        )
    if layout.schedule != "1f1b" or layout.virtual_stages > 1:
        yield (
            f"DeepSpeed's pipeline has only 1f1b, not {layout.schedule} with {layout.virtual_stages} virtual stages: "
            "set layout.schedule=1f1b and layout.virtual_stages=1, or train.engine=torch"
        )


def _deepspeed_numbers(job: Job, layout: Layout) -> Iterator[str]:
    if job.training.dtype == "bf16" and layout.zero_stage == 0 and layout.pp == 1:
        # Its optimizer takes one real step on zero gradients first, so that Adam's bias correction is off by one step.
        yield (
            "DeepSpeed with bf16 and ZeRO-0 starts Adam one step late and trains wrong: "
            "set layout.zero_stage=1, train.dtype=fp32, or train.engine=torch"
        )
    if layout.offload_optimizer and layout.zero_stage == 0:
        yield (
            "DeepSpeed offloads the optimizer with ZeRO 1, 2 or 3 only: "
            "set layout.zero_stage to one, or layout.offload_optimizer=false"
        )


def _deepspeed_sequence(job: Job, layout: Layout) -> Iterator[str]:
    if layout.cp > 1:
        yield (
            f"layout.cp={layout.cp}: our DeepSpeed engine has no context parallelism: "
            "set layout.cp=1, or train.engine=torch"
        )
    if layout.sequence_parallel:
        yield (
            "our DeepSpeed engine has no sequence parallelism: "
            "set layout.sequence_parallel=false, or train.engine=torch"
        )


ENGINES: dict[str, tuple[Rule, ...]] = {"deepspeed": (_deepspeed_pipeline, _deepspeed_numbers)}
COMMON: tuple[Rule, ...] = (_heads, _recompute, _shard_group)
STACK_ENGINES: dict[str, tuple[Rule, ...]] = {
    "torch": (_torch_pipeline, _torch_offload),
    "deepspeed": (_deepspeed_sequence,),
}
