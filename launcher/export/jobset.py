"""A plan for Kubernetes: a JobSet with one job per leaf switch.

Names: JobSet 08dfbdf (jobset.x-k8s.io/v1alpha2), api/jobset/v1alpha2/jobset_types.go.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from launcher.export.ranks import PORT, degrees, gpu_order, script, shared_files
from launcher.export.srun import name
from launcher.export.target import Export, Target
from launcher.export.torchrun import said_by_script
from launcher.export.yaml_text import to_yaml
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.planner.record import Plan

FILE, GROUP, CONTAINER = "jobset.yaml", "leaf", "ranks"
IMAGE = "pytorch/pytorch:latest"
EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
LEAF_LABEL = "topology.kubernetes.io/rack"  # what the site's nodes call their leaf switch
JOB_INDEX = "metadata.annotations['jobset.sigs.k8s.io/job-index']"
POD_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def cannot(job: Job, layout: Layout) -> Iterator[str]:
    """A job that takes some leaves whole and another in part: the jobs of a group are alike."""
    nodes, per_leaf = -(-layout.world_size // job.cluster.node.num_gpus), job.cluster.nodes_per_leaf
    if per_leaf and nodes > per_leaf and nodes % per_leaf:
        yield (
            f"a JobSet's jobs are alike, and {nodes} nodes are no whole number of leaves of {per_leaf}: set "
            f"cluster.num_nodes={nodes - nodes % per_leaf}, or cluster.nodes_per_leaf=0"
        )


def write(plan: Plan) -> Export:
    files = {FILE: to_yaml(job_set(plan)), **shared_files(plan)}
    return Export(FILE, files, tuple(_missing(plan)), f"kubectl apply -f {FILE}")


def leaves(plan: Plan) -> tuple[int, int]:
    """Jobs, and nodes of each."""
    nodes, per_leaf = plan.placement.num_nodes, plan.job.cluster.nodes_per_leaf
    return (1, nodes) if not per_leaf or nodes <= per_leaf else (nodes // per_leaf, per_leaf)


def job_set(plan: Plan) -> dict[str, Any]:
    """The JobSet: pods in the plan's order, by the index of their job and in it."""
    jobs, nodes = leaves(plan)
    group = {"name": GROUP, "replicas": jobs, "template": {"spec": _job(plan, nodes)}}
    metadata: dict[str, Any] = {"name": name(plan)}
    if plan.job.cluster.nodes_per_leaf and plan.placement.num_nodes > 1:
        metadata["annotations"] = {EXCLUSIVE: LEAF_LABEL}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {"failurePolicy": {"maxRestarts": 0}, "replicatedJobs": [group]},
    }


def _job(plan: Plan, nodes: int) -> dict[str, Any]:
    return {
        "parallelism": nodes,
        "completions": nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "containers": [container(plan, nodes)],
                "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],  # 64 MiB are too few for NCCL
            }
        },
    }


def container(plan: Plan, nodes: int) -> dict[str, Any]:
    """One node's ranks; its number is that of its job times the nodes of a job, plus its own."""
    placement = plan.placement
    variables = {**gpu_order(plan), **degrees(plan), "SCRIPT": script(plan, "train.py")}
    found: dict[str, Any] = {
        "name": CONTAINER,
        "image": IMAGE,
        "command": ["bash", "-c", _command(plan, nodes)],
        "env": [
            {"name": "JOB_INDEX", "valueFrom": {"fieldRef": {"fieldPath": JOB_INDEX}}},
            {"name": "POD_INDEX", "valueFrom": {"fieldRef": {"fieldPath": POD_INDEX}}},
            *({"name": key, "value": value} for key, value in variables.items()),
        ],
        "ports": [{"containerPort": PORT}],
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    if plan.job.cluster.node.gpu.kind == "cuda":
        found["resources"] = {"limits": {"nvidia.com/gpu": placement.ranks_per_node}}
    return found


def _command(plan: Plan, nodes: int) -> str:
    first = f"{name(plan)}-{GROUP}-0-0.{name(plan)}"  # <jobset>-<group>-<job>-<pod>.<subdomain>
    return (
        f"exec torchrun --nnodes {plan.placement.num_nodes} --nproc-per-node {plan.placement.ranks_per_node} "
        f"--node-rank $((JOB_INDEX * {nodes} + POD_INDEX)) --master-addr {shlex.quote(first)} --master-port {PORT} "
        '"$SCRIPT"'
    )


def _missing(plan: Plan) -> Iterator[str]:
    yield said_by_script(plan)
    yield f"the image ({IMAGE} is a placeholder) and how your code and data get into it"
    if plan.job.cluster.nodes_per_leaf and plan.placement.num_nodes > 1:
        yield f"the label of your nodes' leaf switches: {LEAF_LABEL} is a placeholder, write your cluster's label"
    if plan.job.cluster.fabric in ("infiniband", "efa", "roce"):
        yield f"the fabric ({plan.job.cluster.fabric}): add your device plugin's resource to the container's limits"


TARGET = Target(
    name="jobset",
    tool="Kubernetes (JobSet)",
    sources=(
        "JobSet 08dfbdf: api/jobset/v1alpha2/jobset_types.go (names, indices, exclusive topology)",
        "JobSet 08dfbdf: config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml",
    ),
    write=write,
    cannot=cannot,
)
