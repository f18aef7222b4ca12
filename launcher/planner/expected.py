"""What the planner expects of one collective over given ranks of a plan, for whoever measures it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from launcher.cost.collectives import collective_s
from launcher.cost.constants import DEFAULT
from launcher.cost.device import core_share
from launcher.cost.network import Fabric, Group, fabric_of
from launcher.cost.traffic import SEND
from launcher.layout import Link
from launcher.layout.placement import common_rails
from launcher.planner.record import Plan


def plan_fabric(plan: Plan) -> Fabric:
    """The links of a plan's cluster, as a measurement sees them: without what training loses between nodes."""
    return fabric_of(plan.job.cluster, replace(DEFAULT, inter_node_fraction=1.0))


def group_of_ranks(plan: Plan, ranks: Sequence[int]) -> Group:
    """The shape of a group on the plan's cluster."""
    placement = plan.placement
    nodes = Counter(placement.domain(rank)[0] for rank in ranks)  # those that NVLink joins count as one
    domains = Counter(placement.domain(rank) for rank in ranks)
    per_domain = max(domains.values()) if plan.job.cluster.node.nvlink != "none" else 1
    link = placement.slowest_link(ranks)
    rails = common_rails(plan.job.cluster, ranks)[1]
    tiers = {"spine": link >= Link.SPINE, "core": link is Link.CORE}
    return Group(len(ranks), per_domain, max(nodes.values()), len(nodes), rails=rails, **tiers)


def expected_s(plan: Plan, fabric: Fabric, operation: str, ranks: Sequence[int], num_bytes: float) -> float:
    """Seconds that a collective over these ranks takes, where all ranks of the plan are in such groups at once."""
    name = SEND if operation == "send_recv" else operation
    seconds = collective_s(fabric, group_of_ranks(plan, ranks), name, num_bytes)
    curves = any(curve.operation == operation for curve in fabric.curves)
    return seconds / core_share(plan.job.cluster.node) if curves else seconds
