"""A plan for SkyPilot: a task with the GPUs that it asks clouds for, and torchrun over its nodes.

Names: https://docs.skypilot.co/en/latest/reference/yaml-spec.html and running-jobs/environment-variables.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launcher.export.ranks import PORT, degrees, gpu_order, script, shared_files
from launcher.export.srun import name
from launcher.export.target import Export, Target
from launcher.export.torchrun import cannot, said_by_script
from launcher.export.yaml_text import to_yaml
from launcher.planner.record import Plan

TASK = "task.yaml"
# Our GPU names in SkyPilot's catalogue (sky gpus list).
GPUS = {
    "a100_sxm_80g": "A100-80GB", "a100_pcie_80g": "A100-80GB", "a100_sxm_40g": "A100", "a100_pcie_40g": "A100",
    "h100_sxm": "H100", "l40s": "L40S", "a10": "A10",
}  # fmt: skip


def write(plan: Plan) -> Export:
    files = {TASK: to_yaml(task(plan)), **shared_files(plan)}
    return Export(TASK, files, tuple(_missing(plan)), f"sky launch {TASK}")


def task(plan: Plan) -> dict[str, Any]:
    """The task."""
    placement = plan.placement
    gpu = GPUS.get(plan.job.cluster.node.gpu.name)
    found: dict[str, Any] = {"name": name(plan), "num_nodes": placement.num_nodes}
    if gpu:
        found["resources"] = {"accelerators": f"{gpu}:{placement.ranks_per_node}"}
    found["envs"] = {**gpu_order(plan), **degrees(plan), "SCRIPT": script(plan, "train.py")}
    run = (
        f"torchrun --nnodes {placement.num_nodes} --nproc-per-node {placement.ranks_per_node} \\\n"
        '  --node-rank "$SKYPILOT_NODE_RANK" --master-addr "$(echo "$SKYPILOT_NODE_IPS" | head -n1)" \\\n'
        f'  --master-port {PORT} "$SCRIPT"\n'
    )
    return found | {"workdir": ".", "run": run}


def _missing(plan: Plan) -> Iterator[str]:
    cluster = plan.job.cluster
    yield said_by_script(plan)
    if cluster.node.gpu.name not in GPUS:
        yield f"the GPU {cluster.node.gpu.name}: it has no name for it, set resources yourself"
    if plan.placement.num_nodes > 1:
        yield (
            f"the network between the nodes ({cluster.fabric}): ask for it by resources.network_tier=best; leaves and "
            "rails are not asked for"
        )


TARGET = Target(
    name="skypilot",
    tool="SkyPilot",
    sources=(
        "https://docs.skypilot.co/en/latest/reference/yaml-spec.html",
        "https://docs.skypilot.co/en/latest/running-jobs/environment-variables.html",
    ),
    write=write,
    cannot=cannot,
)
