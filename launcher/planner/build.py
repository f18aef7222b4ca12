"""Build the plan of a job and a layout request."""

from __future__ import annotations

from launcher.cost.model import CostModel
from launcher.errors import InputError
from launcher.layout import LayoutRequest
from launcher.layout.engines import job_problems, stack_problems
from launcher.layout.job import Job
from launcher.planner.document import estimate_data
from launcher.planner.explain import reasons
from launcher.planner.record import Plan, RunOptions
from launcher.planner.search import search
from launcher.planner.space import Refuse

COMPARED = 3  # number of runners-up in the reasons


def make_plan(
    job: Job, request: LayoutRequest, options: RunOptions, *, to_run: bool = False, refuse: Refuse | None = None
) -> Plan:
    """Return the best plan of a search; raises InputError if no layout is legal, and NoLayoutFits if none fits.

    With `to_run` it also raises InputError if the recipe of `options` uses other software than the planned stack, or
    cannot train the job. `refuse` replaces the check of what that software cannot run.
    """
    if to_run:
        check_recipe_runs(job, options)
    model = CostModel(job)
    result = search(job, request, top=COMPARED, model=model, refuse=refuse or limits(job, options))
    best = result.best
    why = (*reasons(result, model)[0], *notes(job, options))
    return Plan(job, best.layout, estimate_data(best.estimate), why, options)


def limits(job: Job, options: RunOptions) -> Refuse | None:
    """Return the check of what the recipe's software cannot run; None for a script or another stack."""
    return stack_problems if _recipe_stack(options) == job.stack.name else None


def check_recipe_runs(job: Job, options: RunOptions) -> None:
    """Raise InputError if the recipe cannot train the job with any layout."""
    trains = _recipe_stack(options)
    if trains is None:
        return
    if trains != job.stack.name:
        name = options.recipe.name
        raise InputError(
            f"stack={job.stack.name}: the recipe {name} uses the stack {trains} and would not run as planned: "
            f"set stack={trains}, or run your own script with script=FILE"
        )
    if found := job_problems(job):
        raise InputError(found)


def notes(job: Job, options: RunOptions) -> list[str]:
    """Return notes about the software for a reader of the plan: which was assumed, and what it cannot train."""
    trains = _recipe_stack(options)
    if trains == job.stack.name:
        return [f"cannot be run by the recipe {options.recipe.name}: {why}" for why in job_problems(job)]
    if options.program is not None:
        return [f"the program is assumed to train like stack={job.stack.name} of {job.stack.year}"]
    return []


def _recipe_stack(options: RunOptions) -> str | None:
    """Return the stack that the recipe declares; None for a user's program or a recipe that trains nothing."""
    return options.recipe.stack if options.program is None else None
