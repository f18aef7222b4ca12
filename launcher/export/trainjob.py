"""A plan for Kubeflow: a TrainJob of the runtime torch-distributed, which starts torchrun on each node.

Names: Kubeflow Trainer 8c0f505 (trainer.kubeflow.org/v1alpha1), manifests/base/crds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launcher.export.jobset import IMAGE
from launcher.export.ranks import degrees, gpu_order, script, shared_files
from launcher.export.srun import name
from launcher.export.target import Export, Target
from launcher.export.torchrun import cannot, said_by_script
from launcher.export.yaml_text import to_yaml
from launcher.planner.record import Plan

FILE, RUNTIME = "trainjob.yaml", "torch-distributed"


def write(plan: Plan) -> Export:
    files = {FILE: to_yaml(train_job(plan)), **shared_files(plan)}
    return Export(FILE, files, tuple(_missing(plan)), f"kubectl apply -f {FILE}")


def train_job(plan: Plan) -> dict[str, Any]:
    """The TrainJob; its runtime sets torchrun's PET_ variables for nodes and ranks."""
    placement = plan.placement
    variables = {**gpu_order(plan), **degrees(plan)}
    trainer: dict[str, Any] = {
        "image": IMAGE,
        "numNodes": placement.num_nodes,
        "numProcPerNode": placement.ranks_per_node,
        "command": ["torchrun", script(plan, "train.py")],
        "env": [{"name": key, "value": value} for key, value in variables.items()],
    }
    if plan.job.cluster.node.gpu.kind == "cuda":
        trainer["resourcesPerNode"] = {"limits": {"nvidia.com/gpu": placement.ranks_per_node}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name(plan)},
        "spec": {"runtimeRef": {"name": RUNTIME}, "trainer": trainer},
    }


def _missing(plan: Plan) -> Iterator[str]:
    yield said_by_script(plan)
    yield f"the image ({IMAGE} is a placeholder) and how your code and data get into it"
    if plan.job.cluster.nodes_per_leaf and plan.placement.num_nodes > 1:
        yield "leaf switches: a runtime of yours may ask for topology; `to=jobset` writes it"


TARGET = Target(
    name="trainjob",
    tool="Kubeflow Trainer (TrainJob)",
    sources=(
        "Kubeflow Trainer 8c0f505: manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml",
        "Kubeflow Trainer 8c0f505: manifests/base/runtimes/torch_distributed.yaml",
    ),
    write=write,
    cannot=cannot,
)
