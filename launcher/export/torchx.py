"""A plan for TorchX: the component `dist.ddp` with the plan's nodes and ranks.

Names: torchx 0.7, torchx/components/dist.py, ddp.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from launcher.export.ranks import degrees, gpu_order, script, shared_files
from launcher.export.srun import name
from launcher.export.target import Export, Target
from launcher.export.torchrun import cannot, said_by_script
from launcher.planner.record import Plan

START = "run.sh"


def write(plan: Plan) -> Export:
    files = {START: start(plan), **shared_files(plan)}
    return Export(START, files, tuple(_missing(plan)), f"bash {START} SCHEDULER  # slurm, kubernetes, local_cwd …")


def words(plan: Plan) -> list[str]:
    """The words after `torchx run -s SCHEDULER`."""
    placement, variables = plan.placement, {**gpu_order(plan), **degrees(plan)}
    gpus = ["--gpu", str(placement.ranks_per_node)] if plan.job.cluster.node.gpu.kind == "cuda" else []
    return [
        "dist.ddp",
        "--name", name(plan),
        "-j", f"{placement.num_nodes}x{placement.ranks_per_node}",
        *gpus,
        "--env", ",".join(f"{key}={value.replace(',', ';')}" for key, value in variables.items()),
        "--script", script(plan, "train.py"),
    ]  # fmt: skip


def start(plan: Plan) -> str:
    """The script that hands the plan to TorchX."""
    return (
        "#!/usr/bin/env bash\n"
        "# Runs the plan by TorchX: bash run.sh SCHEDULER [arguments of the script]\n"
        "set -euo pipefail\n"
        'cd "$(dirname "$0")"\n'
        "scheduler=${1:?name a scheduler: slurm, kubernetes, aws_batch, local_cwd}; shift\n"
        f'exec torchx run -s "$scheduler" {shlex.join(words(plan))} -- "$@"\n'
    )


def _missing(plan: Plan) -> Iterator[str]:
    yield said_by_script(plan)
    if plan.placement.num_nodes > 1:
        yield "which node is which: dist.ddp's c10d rendezvous numbers nodes by host name, not in the plan's order"
    if gpu_order(plan):
        yield "a list in a variable: CUDA_VISIBLE_DEVICES has ; for , here, set it in your script"


TARGET = Target(
    name="torchx",
    tool="TorchX",
    sources=("torchx 0.7.0: torchx/components/dist.py, ddp",),
    write=write,
    cannot=cannot,
)
