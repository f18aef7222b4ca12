"""Cluster, node and GPU as frozen values. Bytes, bytes/s, FLOP/s and seconds throughout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from launcher.units import gbps_to_bytes_per_s


@dataclass(frozen=True)
class Gpu:
    """One SKU, as the scheduler hands it out: a whole GPU, a MIG slice of one, or a CPU rank.

    `nvlink_bytes_per_s` and `pcie_bytes_per_s` are nameplate rates per direction; 0 where there is no such link.
    `memory_bytes` is what the device reports in total (nvidia-smi), before the context and the framework take theirs.
    """

    name: str
    kind: str  # cuda | cpu
    memory_bytes: int
    hbm_bytes_per_s: float
    peak_flops: Mapping[str, float]  # dtype → dense FLOP/s
    num_sms: int
    nvlink_bytes_per_s: float = 0.0
    pcie_bytes_per_s: float = 0.0
    compute_capability: float = 0.0
    mig_profile: str | None = None
    price_per_hour: float | None = None
    gemm_flops: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))  # dtype → measured large GEMM

    def peak(self, dtype: str) -> float | None:
        """Dense peak in FLOP/s for `dtype`; None where unknown."""
        return self.peak_flops.get(dtype)


@dataclass(frozen=True)
class Node:
    """One machine. `domains` are the NVSwitch domains: sets of local GPU indices with any-to-any NVLink.

    `busbw_bytes_per_s`: measured bus bandwidth of large collectives by the slowest link that they cross (nvlink, pcie,
    leaf, spine); over leaf and spine that of the whole node. The recipe `collectives` tells it.
    """

    gpu: Gpu
    num_gpus: int
    domains: tuple[tuple[int, ...], ...]
    nvlink: str = "none"  # nvswitch | direct | bridge | none
    num_nics: int = 0
    nic_gbps: float = 0.0
    sockets: int = 1
    cores: int = 0
    host_memory_bytes: int = 0
    slices_per_gpu: int = 1  # MIG slices that one physical GPU was cut into; they have no peer-to-peer
    busbw_bytes_per_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_mig(self) -> bool:
        return self.gpu.mig_profile is not None

    @property
    def domain_size(self) -> int:
        """GPUs of the smallest domain: the largest group that is inside a domain wherever it starts."""
        return min(len(d) for d in self.domains)

    @property
    def nic_bytes_per_s(self) -> float:
        """Line rate of one NIC, per direction."""
        return gbps_to_bytes_per_s(self.nic_gbps)

    @cached_property
    def gpu_order(self) -> tuple[int, ...]:
        """Local GPU indices, domain by domain: the order in which ranks fill a node."""
        return tuple(gpu for domain in self.domains for gpu in domain)


@dataclass(frozen=True)
class Cluster:
    """Nodes and the fabric between them.

    `nodes_per_leaf` nodes share a leaf switch; traffic between leaves crosses the spine, which carries
    1/`oversubscription` of what the leaves could ask for. `rails` counts the leaf planes of a rail-optimised fabric.
    """

    name: str
    num_nodes: int
    node: Node
    fabric: str = "none"  # infiniband | efa | roce | ethernet | none
    nodes_per_leaf: int = 0  # 0: all nodes on one leaf
    rails: int = 1
    oversubscription: float = 1.0
    scheduler: str = "local"  # local | slurm
    price_per_node_hour: float | None = None
    default_layout: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def num_gpus(self) -> int:
        """GPUs (or MIG slices, or CPU ranks) of the whole cluster."""
        return self.num_nodes * self.node.num_gpus

    @property
    def max_ranks(self) -> int:
        """The largest world that one job can have: MIG slices cannot talk to each other, so one."""
        return 1 if self.node.is_mig else self.num_gpus

    @property
    def price_per_gpu_hour(self) -> float | None:
        if self.price_per_node_hour is not None:
            return self.price_per_node_hour / self.node.num_gpus
        return self.node.gpu.price_per_hour
