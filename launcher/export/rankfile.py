"""A plan as Open MPI's rank file: rank → host, in the plan's order."""

from __future__ import annotations

from launcher.export.hostfile import HOSTFILE, hostfile
from launcher.export.ranks import check_hosts, shared_files
from launcher.export.target import Export, Target
from launcher.export.torchrun import cannot, said_by_script
from launcher.planner.record import Plan

RANKFILE = "rankfile"


def write(plan: Plan) -> Export:
    check_hosts(plan, RANKFILE)
    files = {RANKFILE: rankfile(plan), HOSTFILE: hostfile(plan), **shared_files(plan)}
    missing = (said_by_script(plan), "GPUs: a slot is a part of the host's cores; local rank i uses GPU i")
    return Export(
        RANKFILE, files, missing, f"mpirun --hostfile {HOSTFILE} --map-by rankfile:file={RANKFILE} python train.py"
    )


def rankfile(plan: Plan) -> str:
    """One line a rank; the cores of a host are shared out among its ranks."""
    node, each = plan.job.cluster.node, plan.placement.ranks_per_node
    cores = max(1, node.cores // each)
    lines = []
    for rank in range(plan.layout.world_size):
        slot = plan.placement.slot(rank)
        first = slot.local_rank * cores
        lines.append(f"rank {rank}={plan.hosts[slot.node]} slot={first}-{first + cores - 1}")
    return "\n".join(lines) + "\n"


TARGET = Target(
    name="rankfile",
    tool="mpirun's rank file",
    sources=("https://docs.open-mpi.org/en/main/man-openmpi/man1/mpirun.1.html (rankfile)",),
    write=write,
    cannot=cannot,
)
