"""What the training engines cannot do, or do wrong without an error. Torch-free: consulted before anything starts.

`engine_problems` holds for whoever uses the engine, and is part of a layout's legality. `recipe_problems` holds for
what the `gpt` recipe is to train: an estimate for another trainer (fp16, experts) may be asked for all the same.

Each rule was found by training: torch 2.13.0 and DeepSpeed 0.19.8 against one process, SGD with clipping, on CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from launcher.layout.degrees import Layout
from launcher.layout.job import Job

Rule = Callable[[Job, Layout], Iterator[str]]


def engine_problems(job: Job, layout: Layout) -> list[str]:
    """Every reason why the engine of `job` cannot train `layout`, each with what is possible; empty when it can."""
    return [message for rule in ENGINES.get(job.training.engine, ()) for message in rule(job, layout)]


def recipe_problems(job: Job, layout: Layout) -> list[str]:
    """Every reason why the `gpt` recipe cannot train `layout`, those of its engine included."""
    rules = (*RECIPE, *RECIPE_ENGINES.get(job.training.engine, ()))
    return [*engine_problems(job, layout), *(message for rule in rules for message in rule(job, layout))]


def _model(job: Job, layout: Layout) -> Iterator[str]:
    if job.model.num_experts:
        yield (
            f"the gpt recipe trains no mixture of experts ({job.model.name} has {job.model.num_experts}): "
            "plan it only, or run your own script"
        )
    if layout.tp > 1 and job.model.kv_heads % layout.tp:
        yield (
            f"layout.tp={layout.tp} does not divide the {job.model.kv_heads} key-value heads of {job.model.name}; the "
            "gpt recipe does not repeat them over ranks: choose a tp that divides them"
        )


def _numbers(job: Job, layout: Layout) -> Iterator[str]:
    if job.training.dtype == "fp16":
        yield "train.dtype=fp16 needs loss scaling, which the gpt recipe does not do: set train.dtype=bf16 (or fp32)"
    elif (reduced := job.training.reduces_in(job.model, layout.zero_stage)) != "fp32":
        yield f"train.grad_reduce_dtype={reduced}: the gpt recipe reduces in fp32: set it to fp32"
    if job.training.dropout:
        yield f"train.dropout={job.training.dropout}: the gpt recipe trains without dropout: set it to auto or 0"


def _torch_pipeline(job: Job, layout: Layout) -> Iterator[str]:
    if layout.pp == 1:
        return
    count, stages = layout.num_micro_batches(job.training.global_batch), layout.pp * layout.virtual_stages
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
    if job.training.offload_optimizer:
        yield (
            "train.offload_optimizer=true: the torch engine keeps its optimizer on the device: "
            "set train.engine=deepspeed and layout.zero_stage=1, 2 or 3"
        )


def _deepspeed_pipeline(job: Job, layout: Layout) -> Iterator[str]:
    if layout.pp == 1:
        return
    if layout.zero_stage == 0:
        # Its norm counts the first stage only (0.2102 told, 0.5589 true): losses drift by 5e-2 in ten steps, no error.
        yield (
            "DeepSpeed's pipeline with ZeRO-0 clips by the norm of the first stage alone and so trains wrong: "
            "set layout.zero_stage=1, layout.pp=1, or train.engine=torch"
        )
    elif layout.zero_stage > 1:
        yield (
            f"DeepSpeed's pipeline does not run with ZeRO-{layout.zero_stage}: "
            "set layout.zero_stage=1, layout.pp=1, or train.engine=torch"
        )
    if layout.schedule != "1f1b" or layout.virtual_stages > 1:
        yield (
            f"DeepSpeed's pipeline knows 1f1b only, not {layout.schedule} with {layout.virtual_stages} virtual stages: "
            "set layout.schedule=1f1b and layout.virtual_stages=1, or train.engine=torch"
        )


def _deepspeed_numbers(job: Job, layout: Layout) -> Iterator[str]:
    if job.training.dtype == "bf16" and layout.zero_stage == 0 and layout.pp == 1:
        # Its optimizer takes one real step on zero gradients first, so that Adam's bias correction is off by one step.
        yield (
            "DeepSpeed with bf16 and ZeRO-0 starts Adam one step late and so trains wrong: "
            "set layout.zero_stage=1, train.dtype=fp32, or train.engine=torch"
        )
    if job.training.offload_optimizer and layout.zero_stage == 0:
        yield (
            "DeepSpeed offloads the optimizer with ZeRO 1, 2 or 3 only: "
            "set layout.zero_stage to one, or train.offload_optimizer=false"
        )


def _deepspeed_sequence(job: Job, layout: Layout) -> Iterator[str]:
    if layout.cp > 1:
        yield (
            f"layout.cp={layout.cp}: the DeepSpeed engine has no context parallelism here: "
            "set layout.cp=1, or train.engine=torch"
        )
    if layout.sequence_parallel:
        yield (
            "the DeepSpeed engine has no sequence parallelism here: "
            "set layout.sequence_parallel=false, or train.engine=torch"
        )


ENGINES: dict[str, tuple[Rule, ...]] = {"deepspeed": (_deepspeed_pipeline, _deepspeed_numbers)}
RECIPE: tuple[Rule, ...] = (_model, _numbers)
RECIPE_ENGINES: dict[str, tuple[Rule, ...]] = {
    "torch": (_torch_pipeline, _torch_offload),
    "deepspeed": (_deepspeed_sequence,),
}
