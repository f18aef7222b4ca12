"""Which plans are worth a try, and what their trials say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from launcher.cost.model import CostModel
from launcher.layout.degrees import LayoutRequest
from launcher.layout.job import Job
from launcher.planner.build import limits
from launcher.planner.document import estimate_data
from launcher.planner.record import Plan, RunOptions
from launcher.planner.search import search


@dataclass(frozen=True)
class Trial:
    """One plan that was run: seconds of a step, None where none was finished; `note`: why it has no fair number."""

    plan: Plan
    step_time_s: float | None
    steps: int = 0
    note: str = ""
    memory_bytes: float | None = None

    @property
    def counts(self) -> bool:
        """Whether it ran to its end."""
        return self.step_time_s is not None and not self.note

    def to_dict(self) -> dict[str, Any]:
        low, high = self.plan.estimate.get("step_time_interval_s") or (None, None)
        return {
            "layout": self.plan.layout.brief(),
            "predicted_step_time_s": self.plan.estimate.get("step_time_s"),
            "predicted_interval_s": [low, high],
            "measured_step_time_s": self.step_time_s,
            "steps": self.steps,
            "note": self.note,
        }


def candidates(job: Job, request: LayoutRequest, options: RunOptions, *, top: int) -> list[Plan]:
    """The `top` most promising plans, the best first: also those that the estimate is sure are slower, for a trial
    that shows it ends early. Raises InputError and NoLayoutFits as a search does.
    """
    result = search(job, request, top=top, model=CostModel(job), refuse=limits(job, options))
    return [
        Plan(job, found.layout, estimate_data(found.estimate), (f"tried by `launcher tune` as number {i}",), options)
        for i, found in enumerate(result.candidates, 1)
    ]


def joined(rounds: Sequence[Trial]) -> Trial:
    """One plan's rounds as one trial: the median of those that ran to their end.

    The fastest round would favour plans whose steps vary most, since a training runs at its usual speed and not at its
    best; the median bears a round that other work lengthened.
    """
    fair = [one for one in rounds if one.counts]
    if not fair:
        return rounds[-1]
    seconds = median(one.step_time_s for one in fair if one.step_time_s is not None)
    memory = max((one.memory_bytes for one in fair if one.memory_bytes is not None), default=None)
    return Trial(rounds[0].plan, seconds, sum(one.steps for one in fair), memory_bytes=memory)


def winner(trials: Sequence[Trial]) -> Trial | None:
    """The fastest that ran to its end."""
    fair = [trial for trial in trials if trial.counts]
    return min(fair, key=lambda trial: trial.step_time_s or 0.0, default=None)


def trials_of(plans: Mapping[str, Plan], rows: Sequence[Mapping[str, Any]]) -> dict[str, Trial]:
    """What the recipe tune wrote, by the plan's file."""
    found = {}
    for row in rows:
        plan = plans[row["plan"]]
        note = "stopped early: too slow" if row["stopped_early"] else ""
        found[row["plan"]] = Trial(plan, row["step_time_s"], len(row.get("steps_s", ())), note, row.get("memory_bytes"))
    return found


def placed(arguments: Sequence[str], plan: Plan) -> list[str]:
    """A program's arguments with the layout's numbers in place of {tp}, {pp}, {micro_batch}, …"""
    layout = plan.layout
    values = {name: getattr(layout, name) for name in PLACES}
    found = []
    for argument in arguments:
        text = argument
        for name, value in values.items():
            text = text.replace("{" + name + "}", str(value))
        found.append(text)
    return found


PLACES = ("tp", "pp", "dp", "cp", "ep", "virtual_stages", "micro_batch", "zero_stage", "recompute")
