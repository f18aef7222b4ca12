"""Check a plan that a user gives: what a search would never have planned was edited by hand, and would train wrong."""

from __future__ import annotations

from launcher.errors import InputError
from launcher.layout.legality import problems
from launcher.planner.record import MOST_NAMED, Plan, check_estimate
from launcher.schema import broken


def check_given(plan: Plan, name: str) -> None:
    """Raise InputError if a value breaks the rule of its key, or the layout is illegal for the job."""
    check_estimate(plan, name)
    job, options = plan.job, plan.options
    held = {"cluster": job.cluster, "model": job.model, "train": job.training, "recipe": options.recipe}
    found = [problem for prefix, value in held.items() for problem in broken(value, prefix)]
    found += [*broken(options.train, "train"), *broken(options.tracking, "tracking")]
    if plan.estimate:  # without one no rule about batches applies: the program is the user's
        found += problems(job, plan.layout)
    if found:
        raise InputError(f"{name} is not a plan of this launcher ({'; '.join(found[:MOST_NAMED])}): plan again")
