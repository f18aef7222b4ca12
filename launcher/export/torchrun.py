"""A plan for torchrun: any script of yours, ranks in the plan's order; what the ranks do is the script's."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.export import facts
from launcher.export.model_habits import started
from launcher.export.ranks import SCRIPT, START_FILE, degrees, node_script, shared_files
from launcher.export.ranks import torchrun as words
from launcher.export.target import Export, Target
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.planner.record import Plan


def cannot(job: Job, layout: Layout) -> Iterator[str]:
    """Nothing: it starts ranks, and a script can do anything with them."""
    yield from ()


def write(plan: Plan) -> Export:
    environment = degrees(plan) | facts.allocator(plan, started(facts.setup(plan)))
    script = node_script(plan, [*words(plan), SCRIPT], environment=environment)
    return Export(START_FILE, {START_FILE: script, **shared_files(plan)}, (said_by_script(plan),))


def said_by_script(plan: Plan) -> str:
    """Return what a launcher of ranks leaves to the script."""
    return (
        f"what the ranks do ({plan.layout.brief()}): the script reads the degrees from LAUNCHER_TP, _PP, _DP and _CP, "
        "the rest from plan.json, each rank's coordinate from ranks.csv"
    )


TARGET = Target(
    name="torchrun",
    tool="torchrun",
    sources=("https://docs.pytorch.org/docs/stable/elastic/run.html (torch 2.13)",),
    write=write,
    cannot=cannot,
    habits=started,
)
