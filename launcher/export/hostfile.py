"""A plan as the hostfile that DeepSpeed's launcher and mpirun read."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.export.ranks import check_hosts, shared_files
from launcher.export.target import Export, Target
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.planner.record import Plan

HOSTFILE = "hostfile"


def cannot(job: Job, layout: Layout) -> Iterator[str]:
    """Nothing: a hostfile says where ranks are, not what they do."""
    yield from ()


def write(plan: Plan) -> Export:
    check_hosts(plan, HOSTFILE)
    files = {HOSTFILE: hostfile(plan), **shared_files(plan)}
    return Export(HOSTFILE, files, ("everything but the hosts and their ranks",), f"mpirun --hostfile {HOSTFILE} …")


def hostfile(plan: Plan) -> str:
    """Hosts in the plan's order, with their ranks."""
    return "".join(f"{host} slots={plan.placement.ranks_per_node}\n" for host in plan.hosts)


TARGET = Target(
    name="hostfile",
    tool="DeepSpeed's launcher and mpirun",
    sources=(
        "https://www.deepspeed.ai/getting-started/#resource-configuration-multi-node",
        "https://docs.open-mpi.org/en/main/man-openmpi/man1/mpirun.1.html (--hostfile)",
    ),
    write=write,
    cannot=cannot,
)
