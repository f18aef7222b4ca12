"""What to do when the allocation is not what the plan was made for: launch.replan = never | shrink | any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from launcher.errors import InputError, NoLayoutFits
from launcher.fields import AUTO
from launcher.launch.slurm.allocation import Allocation
from launcher.launch.slurm.settings import SlurmSettings
from launcher.layout import LayoutRequest
from launcher.plan import Plan

# Degrees that depend on how many GPUs there are: a pin on them was for the cluster that was asked for.
SIZE_KEYS = ("dp", "pp")


def fit_allocation(plan: Plan, allocation: Allocation, settings: SlurmSettings, *, tell: Callable[[str], None]) -> Plan:
    """The plan for the nodes at hand: the same one where their number fits, else a new one with the same global batch.

    Raises InputError where launch.replan does not allow that, NoLayoutFits where nothing fits.
    """
    planned, given = plan.placement.num_nodes, len(allocation.hosts)
    if planned == given:
        return plan
    grows = given > planned
    if settings.replan == "never" or (grows and settings.replan == "shrink"):
        needed = "any" if grows else "shrink or any"
        raise InputError(
            f"Slurm gave {given} nodes ({', '.join(allocation.hosts)}) and the plan is for {planned}: "
            f"ask for --nodes={planned}, or set launch.replan={needed}"
        )
    found = _plan_again(plan, num_nodes=given)
    tell(f"planned again: {given} nodes instead of {planned}: {plan.layout.brief()} → {found.layout.brief()}")
    return found


def _plan_again(plan: Plan, *, num_nodes: int) -> Plan:
    """The best plan on so many nodes; what the user pinned is kept as far as it can be."""
    from launcher.plan.build import make_plan

    job = replace(plan.job, cluster=replace(plan.job.cluster, num_nodes=num_nodes))
    pinned = _pinned(plan.config.get("layout") or {})
    kept = {key: value for key, value in pinned.items() if key not in SIZE_KEYS}
    attempts = [kept, {}] if kept else [{}]
    for request in attempts[:-1]:
        try:
            return make_plan(job, LayoutRequest(**request), plan.config, to_run=True)
        except (InputError, NoLayoutFits):
            continue  # the pins do not fit the smaller cluster: search without them
    return make_plan(job, LayoutRequest(**attempts[-1]), plan.config, to_run=True)


def _pinned(layout: Mapping[str, Any]) -> dict[str, Any]:
    """The layout keys that the user fixed."""
    known = {f.name for f in fields(LayoutRequest)}
    values = {key: value for key, value in layout.items() if key in known and value not in (AUTO, None)}
    if "layer_split" in values:
        values["layer_split"] = tuple(values["layer_split"])
    return values
