"""Plans for the Slurm tests, made directly from values: no search, no configuration files."""

from __future__ import annotations

from shapes import cluster, job, model

from launcher.cluster import Cluster
from launcher.layout import Layout
from launcher.planner import Plan


def plan(
    *,
    nodes: int = 4,
    tp: int = 8,
    pp: int = 2,
    dp: int = 2,
    on: Cluster | None = None,
    batch: int = 64,
    experts: int = 0,
    **layout: object,
) -> Plan:
    """A plan over `nodes` nodes of 8 GPUs (of `on`, where given)."""
    return Plan(
        job(on=on or cluster(nodes=nodes), of=model(num_experts=experts), global_batch=batch),
        Layout(tp=tp, pp=pp, dp=dp, **layout),  # type: ignore[arg-type]
        estimate={},
        why=(),
    )
