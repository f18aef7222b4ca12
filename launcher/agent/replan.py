"""The plan of one round: the job's, or an adapted one if nodes are absent or replaced."""

from __future__ import annotations

from dataclasses import replace

from launcher.errors import InputError, NoLayoutFits
from launcher.layout import LayoutRequest
from launcher.planner import Plan
from launcher.planner.record import RECIPE
from launcher.rendezvous.membership_change import MembershipChange


def plan_of_round(plan: Plan, present: MembershipChange) -> Plan:
    """Return the plan for the present nodes; every node computes the same one.

    With absent nodes only the data-parallel axis shrinks, if that is legal for the same global batch; otherwise the
    search decides. Raises NoLayoutFits or InputError if nothing fits.
    """
    hosts = tuple(present.moved.get(node, host) for node, host in enumerate(plan.hosts) if node not in present.absent)
    if not present.absent:
        return replace(plan, hosts=hosts)
    num_nodes = plan.placement.num_nodes - len(present.absent)
    job = replace(plan.job, cluster=replace(plan.job.cluster, num_nodes=num_nodes))
    smaller = replace(plan, job=job)
    return replace(_shrunk(smaller), hosts=hosts)


def _shrunk(plan: Plan) -> Plan:
    from launcher.planner.build import make_plan  # imports the search, which a full round does not need
    from launcher.planner.launch_only import program_plan

    layout = plan.layout
    kept = LayoutRequest(
        tp=layout.tp,
        pp=layout.pp,
        cp=layout.cp,
        ep=layout.ep,
        virtual_stages=layout.virtual_stages,
        zero_stage=layout.zero_stage,
        offload_optimizer=layout.offload_optimizer,
        recompute=layout.recompute,
        sequence_parallel=layout.sequence_parallel,
        axis_order=layout.axis_order,
        schedule=layout.schedule,
        tp_across_domains=layout.tp_across_domains,
    )
    if plan.kind != RECIPE:
        return program_plan(plan.job, kept, plan.options, model_given=bool(plan.estimate))[0]
    try:
        return make_plan(plan.job, kept, plan.options, to_run=True)
    except (InputError, NoLayoutFits):  # these degrees do not fit fewer nodes
        return make_plan(plan.job, LayoutRequest(tp_across_domains=layout.tp_across_domains), plan.options, to_run=True)
