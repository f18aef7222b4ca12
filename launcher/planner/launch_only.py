"""Plans of the user's own programs, and of recipes that train nothing: placement of ranks without an estimate, unless a
model is given.

Without `model=` there is nothing to estimate, and no rule about batches or memory applies: all ranks are data-parallel,
except for pinned degrees. With `model=` the program is planned and estimated, without tensor, pipeline or context
parallelism unless pinned; a layout that does not fit is a warning, since only the program knows what it needs.
"""

from __future__ import annotations

from dataclasses import replace

from launcher.errors import InputError, LauncherError
from launcher.layout import Layout, LayoutRequest
from launcher.layout.job import Job
from launcher.layout.resolve import plain_layout
from launcher.planner.build import make_plan
from launcher.planner.record import Plan, RunOptions

NOT_GIVEN = "not given"


def program_plan(
    job: Job, request: LayoutRequest, options: RunOptions, *, model_given: bool
) -> tuple[Plan, str | None]:
    """Return the plan of a program, and a warning if the given model does not fit; raises InputError."""
    if not model_given:
        return _without_model(job, request, options, why="no estimate: no model= was given"), None
    asked = replace(request, tp=request.tp or 1, pp=request.pp or 1, cp=request.cp or 1)
    try:
        return make_plan(job, asked, options), None
    except LauncherError as error:
        plan = _without_model(job, request, options, why="no estimate: the model does not fit this layout")
        return replace(plan, job=job), str(error)


def has_model(job: Job) -> bool:
    """Whether the job's model was given: of a plan without one, its shape and its batch say nothing."""
    return job.model.name != NOT_GIVEN


def measuring_plan(job: Job, request: LayoutRequest, options: RunOptions) -> Plan:
    """The plan of a recipe that trains nothing: where its ranks are. Raises InputError.

    Where nothing is pinned, tensor parallelism is the ranks of an NVLink domain, so that its groups are measured too.
    """
    free = all(getattr(request, axis) is None for axis in ("tp", "pp", "dp", "cp"))
    ranks, domain = job.cluster.max_ranks, job.cluster.domain_size
    if free and domain < ranks and ranks % domain == 0:
        request = replace(request, tp=domain)
    return _without_model(job, request, options, why=f"the recipe {options.recipe.name} trains no model")


def _without_model(job: Job, request: LayoutRequest, options: RunOptions, *, why: str) -> Plan:
    layout = _layout(job, request)
    return Plan(replace(job, model=replace(job.model, name=NOT_GIVEN)), layout, {}, (why,), options)


def _layout(job: Job, request: LayoutRequest) -> Layout:
    """Return the pinned degrees, with data parallelism over the remaining ranks."""
    layout, ranks = plain_layout(job, request), job.cluster.max_ranks
    if layout.world_size > ranks or (request.dp is None and layout.world_size < ranks):
        degrees = {axis: layout.degree(axis) for axis in ("tp", "pp", "cp", "dp")}
        said = " × ".join(f"layout.{axis}={degree}" for axis, degree in degrees.items() if degree > 1)
        raise InputError(
            f"{said or 'one rank'} does not fill the {ranks} ranks of {job.cluster.name}: set launch.nproc_per_node "
            "and launch.nnodes to the numbers you want, or pin other degrees"
        )
    return layout
