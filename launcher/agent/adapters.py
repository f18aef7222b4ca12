"""Which network adapters the ranks of a node use, where the cluster file names them (cluster.node.nic_names).

NCCL finds the adapter next to each GPU by itself, but takes every adapter of a node, those for storage too: the names
say which carry traffic between GPUs. It gets all of them on every rank, since it searches its rings over the whole
node. UCX (MPI, UCC, NVSHMEM) serves one process: it gets the adapters nearest to the rank's GPU. None of this has run
on such a node yet.

NCCL_IB_HCA: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-ib-hca ("=": exact names)
UCX_NET_DEVICES: https://openucx.readthedocs.io/en/master/faq.html (device:port)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.cluster import Node
from launcher.planner.record import Plan

RDMA_FABRICS = ("infiniband", "roce")
_DEVICES = Path("/sys/class/infiniband")


def named_adapters(plan: Plan) -> tuple[str, ...]:
    """Return the adapters that carry a plan's traffic between nodes; empty where the cluster file names none."""
    cluster = plan.job.cluster
    uses_rdma = plan.placement.num_nodes > 1 and cluster.node.gpu.kind == "cuda" and cluster.fabric in RDMA_FABRICS
    return cluster.node.nic_names or () if uses_rdma else ()


def near_adapters(node: Node, local_rank: int) -> tuple[str, ...]:
    """Return the named adapters of the GPU of a local rank: its nearest, or its share where a GPU has several."""
    gpu, names = node.gpu_order[local_rank], node.nic_names or ()
    if node.nic_of_gpu or node.num_nics <= node.num_gpus:
        return (names[node.nearest_nic(gpu)],)
    return tuple(name for nic, name in enumerate(names) if nic * node.num_gpus // node.num_nics == gpu)


def nccl_value(names: Sequence[str]) -> str:
    return f"={','.join(names)}"


def ucx_value(names: Sequence[str]) -> str:
    """UCX wants a port with each device."""
    return ",".join(name if ":" in name else f"{name}:1" for name in names)


def ucx_by_rank(node: Node) -> str:
    """Return the values of all local ranks, for people."""
    each = [ucx_value(near_adapters(node, rank)) for rank in range(node.num_gpus)]
    return (
        each[0] if len({*each}) == 1 else ", ".join(f"{value} on local rank {rank}" for rank, value in enumerate(each))
    )


def absent_adapters(plan: Plan, devices: Path = _DEVICES) -> str:
    """Return what is wrong on this machine: named adapters that it lacks; empty if nothing is.

    With a name that is not there, NCCL finds no adapter and takes sockets.
    """
    here = sorted(path.name for path in devices.iterdir()) if devices.is_dir() else []
    absent = [name for name in named_adapters(plan) if name.partition(":")[0] not in here]
    if not absent:
        return ""
    return (
        f"cluster.node.nic_names has {', '.join(absent)}, and this machine has {', '.join(here) or 'no RDMA device'}: "
        "NCCL_IB_HCA and UCX_NET_DEVICES are left unset on it"
    )
