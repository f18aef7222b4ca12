"""A plan as a batch script: one task a rank, tasks in the plan's order.

Slurm numbers tasks node by node with --distribution=block. Where the hosts are known, SLURM_HOSTFILE with
--distribution=arbitrary puts task i on the i-th line: https://slurm.schedmd.com/srun.html.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from launcher.export import facts
from launcher.export.model_habits import started
from launcher.export.ranks import degrees, gpu_order, script, shared_files
from launcher.export.target import Export, Target
from launcher.export.torchrun import cannot, said_by_script
from launcher.planner.record import Plan

JOB, TASKS = "job.sbatch", "tasks.txt"


def write(plan: Plan) -> Export:
    files = {JOB: batch_script(plan), **shared_files(plan)}
    if plan.hosts:
        each = plan.placement.ranks_per_node
        files[TASKS] = "".join(f"{host}\n" * each for host in plan.hosts)
    return Export(JOB, files, tuple(_missing(plan)), f"sbatch {JOB}")


def batch_script(plan: Plan) -> str:
    """The script that sbatch takes; every rank finds torchrun's variables."""
    cluster, placement = plan.job.cluster, plan.placement
    gpus = [f"#SBATCH --gres=gpu:{placement.ranks_per_node}"] if cluster.node.gpu.kind == "cuda" else []
    segments = facts.allocator(plan, started(facts.setup(plan)))
    variables = {**gpu_order(plan), **degrees(plan), **segments, "WORLD_SIZE": str(plan.layout.world_size)}
    order = ["--distribution=arbitrary"] if plan.hosts else ["--distribution=block"]
    rank = 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python "$@"'
    lines = [
        "#!/usr/bin/env bash",
        f"#SBATCH --job-name={name(plan)}",
        f"#SBATCH --nodes={placement.num_nodes}",
        f"#SBATCH --ntasks-per-node={placement.ranks_per_node}",
        *gpus,
        "#SBATCH --exclusive",
        *([f"#SBATCH --nodelist={','.join(plan.hosts)}"] if plan.hosts else []),
        "set -euo pipefail",
        'cd "$SLURM_SUBMIT_DIR"',
        f"SCRIPT=${{SCRIPT:-{shlex.quote(script(plan, 'train.py'))}}}",
        _master(plan),
        "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))  # below Linux's ephemeral range",
        *(f"export {key}={shlex.quote(value)}" for key, value in variables.items()),
        *([f"export SLURM_HOSTFILE=$PWD/{TASKS}"] if plan.hosts else []),
        f"srun --kill-on-bad-exit=1 {' '.join(order)} \\",
        f'  bash -c \'{rank}\' rank "$SCRIPT" "$@"',
    ]
    return "\n".join(lines) + "\n"


def name(plan: Plan) -> str:
    """A name that every scheduler takes."""
    return "".join(letter if letter.isalnum() else "-" for letter in plan.job.model.name.lower()).strip("-") or "plan"


def _master(plan: Plan) -> str:
    if plan.hosts:
        return f"export MASTER_ADDR={shlex.quote(plan.hosts[0])}"
    return 'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1); export MASTER_ADDR'


def _missing(plan: Plan) -> Iterator[str]:
    yield said_by_script(plan)
    yield "the site: partition, account and time limit, as sbatch --partition=… --time=…"
    if plan.placement.num_nodes > 1 and not plan.hosts:
        yield "which node is which: Slurm numbers them by name, `launcher submit` places them by what they exchange"


TARGET = Target(
    name="srun",
    tool="sbatch and srun",
    sources=(
        "https://slurm.schedmd.com/srun.html (--distribution, SLURM_HOSTFILE)",
        "https://slurm.schedmd.com/sbatch.html",
    ),
    write=write,
    cannot=cannot,
    habits=started,
)
