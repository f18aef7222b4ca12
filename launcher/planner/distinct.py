"""Plans that differ: near-duplicates of a plan are named with it instead of filling the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launcher.layout import Layout
from launcher.planner.result import Candidate

ALIKE = 0.01  # of the step: near-duplicates are as fast but for this
# Keys that change neither how the ranks are shared out nor the size of a micro-batch: how the same plan is run.
MINOR = (
    *("virtual_stages", "zero_stage", "shard_group", "offload_optimizer", "recompute", "recompute_fraction"),
    "sequence_parallel",
)
WORDS = {
    "virtual_stages": "v",
    "zero_stage": "zero",
    "shard_group": "shard",
    "sequence_parallel": "sp",
    "offload_optimizer": "offload",
}


class Distinct(NamedTuple):
    """A plan, and the values that other keys may have as well, in words: `zero 2, 3`."""

    candidate: Candidate
    also: tuple[str, ...] = ()


def distinct(candidates: Sequence[Candidate], *, top: int) -> list[Distinct]:
    """The first `top` plans that differ in more than one minor key from a plan before them that is as fast."""
    leaders: list[Candidate] = []
    also: list[dict[str, list[object]]] = []
    for candidate in candidates:
        alike = next((i for i, leader in enumerate(leaders) if _minor(leader, candidate)), None)
        if alike is None:
            leaders.append(candidate)
            also.append({})
            continue
        (key,) = _changed(leaders[alike].layout, candidate.layout)
        also[alike].setdefault(key, []).append(getattr(candidate.layout, key))
    return [Distinct(leader, _words(more)) for leader, more in zip(leaders[:top], also, strict=False)]


def by(plans: Sequence[Candidate], order: str | None) -> list[Candidate]:
    """Plans in another order than that of the search. `memory`: of the front of time and memory, on which no plan is
    beaten in both, least memory first; `cost`: by USD a token, where the price is known.
    """
    if order == "memory":
        return sorted(front(plans), key=lambda plan: plan.estimate.memory_bytes_per_gpu)
    if order == "cost":
        return sorted(plans, key=lambda plan: plan.estimate.cost_per_million_tokens or 0.0)
    if order == "time":
        return sorted(plans, key=lambda plan: plan.estimate.step_time_s)
    return list(plans)


def front(plans: Sequence[Candidate]) -> list[Candidate]:
    """The plans that need less memory than every faster one, fastest first."""
    found: list[Candidate] = []
    for plan in sorted(plans, key=lambda each: (each.estimate.step_time_s, each.estimate.memory_bytes_per_gpu)):
        if not found or plan.estimate.memory_bytes_per_gpu < found[-1].estimate.memory_bytes_per_gpu:
            found.append(plan)
    return found


def _minor(leader: Candidate, candidate: Candidate) -> bool:
    """Whether one minor key alone tells them apart, and hardly any time."""
    gap = candidate.estimate.step_time_s / leader.estimate.step_time_s - 1
    if abs(gap) > ALIKE:
        return False
    changed = _changed(leader.layout, candidate.layout)
    return len(changed) == 1 and changed[0] in MINOR


def _changed(one: Layout, other: Layout) -> list[str]:
    """The keys in which they differ; schedule and split follow from virtual stages."""
    keys = [key for key in vars(one) if getattr(one, key) != getattr(other, key)]
    return [key for key in keys if key not in ("schedule", "layer_split")] if "virtual_stages" in keys else keys


def _words(more: dict[str, list[object]]) -> tuple[str, ...]:
    return tuple(f"{WORDS.get(key, key)} {', '.join(map(_plain, values))}" for key, values in more.items())


def _plain(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
