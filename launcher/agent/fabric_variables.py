"""Variables by which NCCL, gloo and UCX find the network, where the cluster file knows it better than they do.

cluster.node.nic_names: NCCL finds the adapter next to each GPU by itself, but takes every adapter of a node, those for
storage too; the names say which carry traffic between GPUs. It gets all of them on every rank, since it searches its
rings over the whole node. UCX (MPI, UCC, NVSHMEM) serves one process: it gets the adapters nearest to the rank's GPU.
cluster.node.interface: of several interfaces, both libraries take one by its name. cluster.node.nccl_topo_file: on
virtual machines NCCL cannot see the PCIe tree. None of this has run on a GPU yet.

NCCL_IB_HCA, NCCL_SOCKET_IFNAME ("=": exact names), NCCL_TOPO_FILE:
https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
UCX_NET_DEVICES: https://openucx.readthedocs.io/en/master/faq.html (device:port)
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster import Node
from launcher.cluster.machine import RDMA_FABRICS
from launcher.planner.record import Plan

HCAS = ("NCCL_IB_HCA", "UCX_NET_DEVICES")
SOCKETS = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
TOPOLOGY = "NCCL_TOPO_FILE"
_DEVICES = Path("/sys/class/infiniband")


@dataclass(frozen=True)
class Variable:
    """A variable that a rank gets unless the user has set it, with the reason."""

    name: str
    value: str
    why: str


def fabric_variables(plan: Plan, local_rank: int | None) -> list[Variable]:
    """Return what the cluster file says for a local rank; None: in words for all."""
    node, names, found = plan.job.cluster.node, named_adapters(plan), []
    on_gpus = node.gpu.kind == "cuda"
    if names:
        near = _by_rank(node) if local_rank is None else ucx_value(near_adapters(node, local_rank))
        why = "the adapters of cluster.node.nic_names carry traffic between GPUs"
        found += [Variable(HCAS[0], f"={','.join(names)}", why)]
        found += [Variable(HCAS[1], near, "of these, the nearest to the rank's GPU")]
    if node.interface and plan.placement.num_nodes > 1:
        why = "the interface between nodes by cluster.node.interface"
        found += [Variable(SOCKETS[0], f"={node.interface}", why)] if on_gpus else []
        found += [Variable(SOCKETS[1], node.interface, why)]
    if node.nccl_topo_file and on_gpus:
        found += [Variable(TOPOLOGY, node.nccl_topo_file, "the node's PCIe tree by cluster.node.nccl_topo_file")]
    return found


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


def ucx_value(names: Sequence[str]) -> str:
    """UCX wants a port with each device."""
    return ",".join(name if ":" in name else f"{name}:1" for name in names)


def _by_rank(node: Node) -> str:
    """Return the values of all local ranks, for people."""
    each = [ucx_value(near_adapters(node, rank)) for rank in range(node.num_gpus)]
    return (
        each[0] if len({*each}) == 1 else ", ".join(f"{value} on local rank {rank}" for rank, value in enumerate(each))
    )


def left_unset(plan: Plan, *, adapters: Sequence[str], interfaces: Sequence[str]) -> dict[str, str]:
    """Return the variables that this machine cannot have, each with the reason: what they name is not there.

    NCCL would take sockets where an adapter is missing, and end where an interface or a file is.
    """
    node, found = plan.job.cluster.node, dict[str, str]()
    if absent := [name for name in named_adapters(plan) if name.partition(":")[0] not in adapters]:
        there = ", ".join(adapters) or "no RDMA device"
        why = f"cluster.node.nic_names has {', '.join(absent)}, and this machine {there}"
        found |= dict.fromkeys(HCAS, why)
    if node.interface and node.interface not in interfaces:
        why = f"cluster.node.interface is {node.interface}, and this machine has {', '.join(interfaces) or 'none'}"
        found |= dict.fromkeys(SOCKETS, why)
    if node.nccl_topo_file and not Path(node.nccl_topo_file).is_file():
        found[TOPOLOGY] = f"cluster.node.nccl_topo_file is {node.nccl_topo_file}, which is not on this machine"
    wanted = {variable.name for variable in fabric_variables(plan, None)}
    return {name: why for name, why in found.items() if name in wanted}


def rdma_devices() -> list[str]:
    """Return the RDMA devices of this machine."""
    return sorted(path.name for path in _DEVICES.iterdir()) if _DEVICES.is_dir() else []


def network_interfaces() -> list[str]:
    """Return the network interfaces of this machine, or of this namespace."""
    return [name for _, name in socket.if_nameindex()]
