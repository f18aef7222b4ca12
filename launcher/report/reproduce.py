"""The commands that make a plan or a run again. Each was tried: one that would make another job is left out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields

from launcher.config.compose import load
from launcher.errors import InputError
from launcher.layout import Layout
from launcher.layout.resolve import plain_layout
from launcher.planner import Plan
from launcher.report.facts import RunFacts


def commands(plan: Plan, run: RunFacts | None, given: Sequence[str] = ()) -> Iterator[str]:
    """Yield what runs this plan again, then its layout by keys, then the search that could choose another.

    `given`: the words that the plan came from, `plan=FILE` or overrides.
    """
    start = "submit" if plan.placement.num_nodes > 1 and plan.job.cluster.scheduler == "slurm" else "run"
    if run:
        yield _line("run", f"again={run.name}") if run.origin else _line(start, f"plan={run.name}")
    from_file = any(word.startswith("plan=") for word in given)
    if from_file:
        yield _line(start, *given)
    words = [word for word in given if not word.startswith("layout.")] if given and not from_file else _job(plan)
    pins = _pins(plan, words)
    if pins is not None:
        yield _line(start, *words, *pins)
        yield _line("plan", *words)


def _line(command: str, *words: str) -> str:
    return " ".join(["launcher", command, *map(shlex.quote, words)])


def _job(plan: Plan) -> list[str]:
    """The job as most are said: by the names of its files and its size."""
    cluster = plan.job.cluster
    return [
        *(f"cluster={cluster.name}", f"cluster.num_nodes={cluster.num_nodes}", f"model={plan.job.model.name}"),
        f"train.global_batch={plan.job.training.global_batch}",
    ]


def _pins(plan: Plan, words: Sequence[str]) -> list[str] | None:
    """Return the keys that make this layout of the job of `words`; None where that is another job."""
    pins = list(_keys(plan.layout))
    split = f"layout.layer_split=[{','.join(map(str, plan.layout.layer_split))}]"
    return next((tried for tried in (pins, [*pins, split]) if _makes(plan, [*words, *tried])), None)


def _makes(plan: Plan, words: Sequence[str]) -> bool:
    try:
        found = load(words)
    except InputError:
        return False
    return found.job == plan.job and plain_layout(found.job, found.request) == plan.layout


def _keys(layout: Layout) -> Iterator[str]:
    plain = Layout(tp=1, pp=1, dp=1)
    for f in fields(layout):
        value = getattr(layout, f.name)
        if f.name in ("tp", "pp", "dp") or (value != getattr(plain, f.name) and f.name != "layer_split"):
            yield f"layout.{f.name}={str(value).lower() if isinstance(value, bool) else value}"
