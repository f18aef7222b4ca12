"""Check a plan that a user gives: what a search would never have planned was edited by hand, and would train wrong."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import InputError
from launcher.layout.legality import problems
from launcher.planner.record import MOST_NAMED, Plan, check_estimate, read_plan
from launcher.schema import broken
from launcher.stacks.choice import StackKeys


def read_checked(file: Path) -> Plan:
    """Read a plan file that a user names; raises InputError where it is none, or was edited into one of no search."""
    plan = read_plan(file)
    check_given(plan, str(file))
    return plan


def check_given(plan: Plan, name: str) -> None:
    """Raise InputError if a value breaks the rule of its key, or the layout is illegal for the job."""
    check_estimate(plan, name)
    job, options = plan.job, plan.options
    held = {"cluster": job.cluster, "model": job.model, "train": job.training, "recipe": options.recipe}
    found = [problem for prefix, value in held.items() for problem in broken(value, prefix)]
    found += [*broken(options.train, "train"), *broken(options.tracking, "tracking")]
    found += [*broken(job.stack, "stack", keys=StackKeys), *broken(options.asked, "layout")]
    if plan.estimate:  # without one no rule about batches applies: the program is the user's
        found += problems(job, plan.layout)
    if found:
        raise InputError(f"{name} is not a plan of this launcher ({'; '.join(found[:MOST_NAMED])}): plan again")
