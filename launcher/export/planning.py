"""The best plan that a target can express: what it cannot say is left out of the search, not refused after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from launcher.config.settings import Settings
from launcher.errors import InputError
from launcher.export.deepspeed import CONFIG as DEEPSPEED_CONFIG
from launcher.export.facts import with_deepspeed
from launcher.export.target import Export, Target
from launcher.layout import Layout, LayoutRequest
from launcher.layout.job import Job
from launcher.planner.build import make_plan
from launcher.planner.habits import setup_of, unsaid
from launcher.planner.launch_only import has_model
from launcher.planner.record import Plan

SAYS_FP8 = ("megatron",)
WRITES_MODEL = ("megatron", "nemo", "torchtitan")  # whose files have the shape of the model
ALONE = "cannot have the optimizer alone on the host: what it offloads are parameters and gradients too"
SOFTWARE = {"stack", "stack.name", "train.engine"}  # what trains: one choice, whichever of the keys makes it


def with_overrides(words: Sequence[str], target: Target) -> list[str]:
    """The user's overrides, after the software that the target brings, unless the user names another."""
    said = {word.lstrip("+~").partition("=")[0] for word in words}
    if said & SOFTWARE:
        return list(words)
    return [*target.overrides, *words]


def plan_for(settings: Settings, target: Target) -> Plan:
    """The best plan among the layouts that `target` can express.

    Raises InputError with its reasons where it can express none that keeps what is pinned.
    """

    request = _pinned(_without_defaults(settings, target), target.pins)
    unasked = request.offload_optimizer is None and not target.offloads(settings.job)

    def refuse(job: Job, layout: Layout) -> list[str]:
        lacks = [f"{target.tool} {ALONE}"] if unasked and layout.offload_optimizer else []
        return [*target.cannot(job, layout), *lacks]

    return make_plan(settings.job, request, settings.run_options, refuse=refuse)


def express(plan: Plan, target: Target) -> Export:
    """The plan in the terms of `target`; raises InputError where it cannot be expressed."""
    _check(plan, target)
    export = target.write(plan)
    _check_ds_config(plan, export)
    export = replace(export, missing=(*export.missing, *_unsaid(plan, target)))
    if plan.layout.offload_optimizer and not target.offloads(plan.job):
        export = replace(export, missing=(*export.missing, f"layout.offload_optimizer: {target.tool} {ALONE}"))
    if plan.job.training.fp8 and target.name not in SAYS_FP8:
        lost = "products in fp8 (train.gemm_dtype): set them there by hand"
        return replace(export, missing=(*export.missing, lost))
    return export


def _unsaid(plan: Plan, target: Target) -> Iterator[str]:
    """A line with what the plan assumes of its software that the tool does otherwise, and has no option for."""
    if not target.profiles:
        return
    name = plan.job.stack.name
    profile = name if name in target.profiles else target.profiles[0]
    table = target.habits(setup_of(plan.job, plan.layout, deepspeed=with_deepspeed(plan.job)))
    habits = list(unsaid(table, plan.job, plan.layout, profile=profile))
    if habits:
        yield (
            f"{', '.join(habits)}, which the plan assumes: {target.tool} has no option for it and does as "
            f"stack={profile} says"
        )


def _check(plan: Plan, target: Target) -> None:
    """Raise InputError where `target` cannot express a plan that is given."""
    if each := plan.options.node_ranks:
        raise InputError(
            f"this plan gives its nodes {', '.join(map(str, each))} ranks, and exports say one number for all nodes: "
            "plan it for equal nodes, or print torchrun's commands by launch=torchrun"
        )
    if target.name in WRITES_MODEL and not has_model(plan.job):
        raise InputError(
            f"this plan has no model, and to={target.name} writes one: plan it with model=, or export it "
            "to=torchrun, which starts any program"
        )
    if problems := list(target.cannot(plan.job, plan.layout)):
        raise InputError([f"this plan cannot be exported to={target.name}", *problems])


def _check_ds_config(plan: Plan, export: Export) -> None:
    """Raise InputError if a DeepSpeed configuration of the user's is in no file of the export."""
    file = plan.options.train.ds_config
    if file is not None and DEEPSPEED_CONFIG not in export.files:
        raise InputError(
            f"train.ds_config={file} is in none of the files: DeepSpeed does not train in this export. "
            "Leave it out, or take to=deepspeed, or to=accelerate, hf or lightning with stack=deepspeed"
        )


def _pinned(request: LayoutRequest, pins: Mapping[str, object]) -> LayoutRequest:
    """The request with what the target knows one value for; what the user pinned stays, to be refused by its reason."""
    wanted: dict[str, Any] = {key: value for key, value in pins.items() if getattr(request, key) is None}
    return replace(request, **wanted)


def _without_defaults(settings: Settings, target: Target) -> LayoutRequest:
    """Return what the user pinned, and what the cluster's default layout pins unless the target lacks it."""
    defaults = settings.job.cluster.default_layout
    against = any(key in target.pins and target.pins[key] != value for key, value in defaults.items())
    return settings.options.layout if against else settings.request
