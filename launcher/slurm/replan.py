"""Adapts a plan to a different allocation: launch.replan = never | shrink | any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.cluster import Cluster
from launcher.errors import InputError, NoLayoutFits
from launcher.layout import LayoutRequest
from launcher.planner import Plan
from launcher.planner.record import RECIPE
from launcher.slurm.settings import SlurmSettings

# Degrees that depend on the number of GPUs: the user pinned them for the requested cluster.
SIZE_KEYS = ("dp", "pp")


@dataclass(frozen=True)
class Hosts:
    """The allocation: host names in Slurm's order, the GRES type of their GPUs if it matters, other clusters.

    `clusters`: by GRES type, clusters other than the planned one that the job may run on (launch.gpu_clusters).
    """

    names: tuple[str, ...]
    gpu_types: Mapping[str, str | None] = field(default_factory=dict)
    clusters: Mapping[str, Cluster] = field(default_factory=dict)

    def by_cluster(self, planned: Cluster) -> list[tuple[Cluster, tuple[str, ...]]]:
        """Return the hosts of each kind; those with an unknown GRES type count as the planned cluster."""
        groups: dict[str, tuple[Cluster, list[str]]] = {}
        for name in self.names:
            cluster = self.clusters.get(self.gpu_types.get(name) or "", planned)
            groups.setdefault(cluster.name, (cluster, []))[1].append(name)
        return [(cluster, tuple(names)) for cluster, names in groups.values()]


@dataclass(frozen=True)
class Fit:
    """A plan, and at least as many hosts as it has nodes."""

    plan: Plan
    hosts: tuple[str, ...]


def fit_allocation(plan: Plan, hosts: Hosts, settings: SlurmSettings, *, notify: Callable[[str], None]) -> Fit:
    """Return the plan for the available nodes: the same one if they match, else a new one with the same global batch.

    With several kinds of GPUs, the fastest plan on one of them: a layout runs on one kind. Raises InputError if
    launch.replan does not allow what is needed, NoLayoutFits if nothing fits.
    """
    fits: list[Fit] = []
    problems: list[InputError | NoLayoutFits] = []
    for cluster, names in hosts.by_cluster(plan.job.cluster):
        try:
            fits.append(Fit(_fitted(plan, cluster, names, settings), names))
        except (InputError, NoLayoutFits) as problem:
            problems.append(problem)
    if not fits:
        raise problems[0]
    best = min(fits, key=lambda fit: float(fit.plan.estimate.get("step_time_s", 0.0))) if len(fits) > 1 else fits[0]
    if best.plan is not plan:
        before, now = plan.job.cluster, best.plan.job.cluster
        nodes = "node" if now.num_nodes == 1 else "nodes"
        notify(
            f"planned again: {now.num_nodes} {nodes} of {now.name} instead of {before.num_nodes} of {before.name}: "
            f"{plan.layout.brief()} → {best.plan.layout.brief()}"
        )
    if idle := [name for name in hosts.names if name not in best.hosts]:
        notify(
            f"{', '.join(idle)} stay idle: a layout runs on one kind of GPU, and {best.plan.job.cluster.name} is faster"
        )
    return best


def _fitted(plan: Plan, cluster: Cluster, names: Sequence[str], settings: SlurmSettings) -> Plan:
    """Return the plan on nodes of one kind; raises InputError if launch.replan does not allow their number."""
    planned, given = plan.placement.num_nodes, len(names)
    num_nodes = given if given <= planned else max(planned, given - settings.spares)
    if num_nodes == planned and cluster == plan.job.cluster:
        return plan
    grows = num_nodes > planned
    if settings.replan == "never" or (grows and settings.replan == "shrink"):
        needed = "any" if grows else "shrink or any"
        raise InputError(
            f"Slurm gave {given} nodes ({', '.join(names)}), but the plan is for {planned}: "
            f"ask for --nodes={planned}, or set launch.replan={needed}"
        )
    fewest = settings.fewest_nodes(planned)
    if num_nodes < fewest:
        raise InputError(f"{', '.join(names)} are fewer nodes than launch.min_nodes={fewest}: wait, or lower it")
    return _plan_again(plan, replace(cluster, num_nodes=num_nodes))


def _plan_again(plan: Plan, cluster: Cluster) -> Plan:
    """Return the best plan on another cluster; keep the user's pinned keys if possible."""
    from launcher.planner.build import make_plan
    from launcher.planner.launch_only import program_plan

    job = replace(plan.job, cluster=cluster)
    asked = plan.options.asked
    pinned: dict[str, Any] = {**asked.pinned(), "tp_across_domains": asked.tp_across_domains}
    kept = {key: value for key, value in pinned.items() if key not in SIZE_KEYS}
    if plan.kind != RECIPE:
        return program_plan(job, LayoutRequest(**kept), plan.options, model_given=bool(plan.estimate))[0]
    attempts = [kept, {}] if kept else [{}]
    for request in attempts[:-1]:
        try:
            return make_plan(job, LayoutRequest(**request), plan.options, to_run=True)
        except (InputError, NoLayoutFits):
            continue  # the pinned keys do not fit the other cluster: search without them
    return make_plan(job, LayoutRequest(**attempts[-1]), plan.options, to_run=True)
