"""The plan of one round: the job's own, or what becomes of it when nodes are absent or others sit in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from launcher.errors import InputError, NoLayoutFits
from launcher.layout import LayoutRequest
from launcher.plan import Plan


@dataclass(frozen=True)
class Present:
    """Who is there in a round, as far as it differs from the plan: absent nodes, and nodes on other hosts."""

    absent: tuple[int, ...] = ()
    moved: Mapping[int, str] = field(default_factory=dict)

    @property
    def as_planned(self) -> bool:
        return not self.absent and not self.moved


def plan_of_round(plan: Plan, present: Present) -> Plan:
    """The plan for the nodes that are there; every node comes to the same one by itself.

    With nodes absent the data-parallel axis shrinks and all else stays, where that is legal for the same global
    batch; otherwise the search decides. Raises NoLayoutFits or InputError where nothing does.
    """
    hosts = tuple(present.moved.get(node, host) for node, host in enumerate(plan.hosts) if node not in present.absent)
    if not present.absent:
        return replace(plan, hosts=hosts)
    num_nodes = plan.placement.num_nodes - len(present.absent)
    job = replace(plan.job, cluster=replace(plan.job.cluster, num_nodes=num_nodes))
    smaller = replace(plan, job=job)
    return replace(_shrunk(smaller), hosts=hosts)


def _shrunk(plan: Plan) -> Plan:
    from launcher.plan.build import make_plan  # the search, which a full round does not need

    layout = plan.layout
    kept = LayoutRequest(
        tp=layout.tp,
        pp=layout.pp,
        cp=layout.cp,
        ep=layout.ep,
        virtual_stages=layout.virtual_stages,
        zero_stage=layout.zero_stage,
        recompute=layout.recompute,
        sequence_parallel=layout.sequence_parallel,
        axis_order=layout.axis_order,
        schedule=layout.schedule,
        tp_across_domains=layout.tp_across_domains,
    )
    try:
        return make_plan(plan.job, kept, plan.config, to_run=True)
    except (InputError, NoLayoutFits):  # these degrees do not fit fewer nodes
        return make_plan(plan.job, LayoutRequest(tp_across_domains=layout.tp_across_domains), plan.config, to_run=True)
