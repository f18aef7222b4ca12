"""Cluster, node and GPU as frozen values: the keys of `cluster.*`. Bytes, bytes/s, FLOP/s and seconds throughout."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

from launcher import env
from launcher.cluster.measured import NOTHING, Measurements
from launcher.cluster.mesh import checked_counts, components
from launcher.cluster.mig_profiles import Profile, profiles_of
from launcher.cluster.node_lists import check_nics, domains_of, of_each_gpu
from launcher.errors import InputError
from launcher.schema import AUTO, key, only_read
from launcher.units import DTYPE_BYTES, GIB, MIB, gbps_to_bytes_per_s

# Far above what anybody has, and low enough for a search to end.
MOST_NODES, MOST_GPUS, MOST_LINKS = 10**6, 10**4, 100
DTYPES = tuple(DTYPE_BYTES)
DEGREES = ("tp", "pp", "dp", "cp", "ep")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One SKU, as the scheduler hands it out: a whole GPU, a MIG slice of one, or a CPU rank.

    `memory_bytes` is what the device reports in total (nvidia-smi), before the context and the framework take theirs.
    """

    name: str = key(meaning="name of the SKU")
    kind: str = key(meaning="what its ranks compute on", choices=("cuda", "cpu"))
    memory_bytes: int
    hbm_bytes_per_s: float = key(
        name="hbm_gbytes_per_s", scale=1e9, unit="GB/s", above=0, meaning="nameplate bandwidth of the GPU's memory"
    )
    peak_flops: Mapping[str, float] = key(
        {}, name="peak_tflops", scale=1e12, unit="TFLOP/s", above=0, names=DTYPES, example="{bf16: 312}",
        meaning="dense peak by dtype; without it MFU is unknown",
    )  # fmt: skip
    num_sms: int = key(unit="SMs", minimum=1, meaning="streaming multiprocessors")
    nvlink_bytes_per_s: float = key(
        0.0, name="nvlink_gbytes_per_s", scale=1e9, unit="GB/s", minimum=0,
        meaning="all NVLinks of the GPU together, nameplate, per direction; 0: none",
    )  # fmt: skip
    pcie_bytes_per_s: float = key(
        0.0, name="pcie_gbytes_per_s", scale=1e9, unit="GB/s", minimum=0, meaning="PCIe, per direction; 0: unknown"
    )
    mig_profile: str | None = key(None, meaning="profile of a MIG slice, as 3g.40gb; null: a whole GPU")
    price_per_hour: float | None = key(None, unit="USD", minimum=0, meaning="price, for clusters that have none")
    gemm_flops: Mapping[str, float] = key(
        {}, name="gemm_tflops", scale=1e12, unit="TFLOP/s", above=0, names=DTYPES, example="{bf16: 260}",
        meaning="measured rate of large matrix products by dtype (recipe gemm); of one core, where ranks are on CPUs",
    )  # fmt: skip
    copy_bytes_per_s: float | None = key(
        None, name="copy_gbytes_per_s", scale=1e9, unit="GB/s", above=0,
        meaning="measured rate of a copy in the GPU's memory, read and written bytes counted (recipe memory); of one "
        "core, where ranks are on CPUs",
    )  # fmt: skip
    sustained_flops: Mapping[str, float] = key(
        {}, name="sustained_tflops", scale=1e12, unit="TFLOP/s", above=0, names=DTYPES, example="{bf16: 237}",
        meaning="rate of large matrix products that training sustains at the board's power, by dtype; "
        "else a share of gemm_tflops or of the peak",
    )  # fmt: skip
    attention_flops: Mapping[str, float] = key(
        {}, name="attention_tflops", scale=1e12, unit="TFLOP/s", above=0, names=("flash1", "triton", "flash"),
        example="{flash: 159}",
        meaning="rate of attention kernels in half precision, forward and backward, long sequences, heads of 128; "
        "else a share of the peak",
    )  # fmt: skip
    also_read: ClassVar = {
        "memory_mib": only_read(float | None, unit="MiB", above=0, meaning="memory, as nvidia-smi reports it"),
        "memory_gib": only_read(float | None, unit="GiB", above=0, meaning="memory, where memory_mib is null"),
        "mig_slice": only_read(
            str | None, example="1g.5gb",
            meaning="cut as a MIG slice of this profile: memory and rates follow from those of the whole GPU",
        ),
    }  # fmt: skip

    @classmethod
    def from_keys(cls, given: dict[str, Any]) -> Gpu:
        """The memory is given in one of two units; a slice is cut from what is given."""
        cut = given.pop("mig_slice", None)
        mib, gib = given.pop("memory_mib"), given.pop("memory_gib")
        if (mib is None) == (gib is None):
            found = "neither" if mib is None else f"memory_mib={mib:g} and memory_gib={gib:g}"
            raise InputError(
                f"cluster.node.gpu takes one of memory_mib and memory_gib, and has {found}: "
                "give one, and the other as null"
            )
        gpu = cls(**given, memory_bytes=int(mib * MIB if gib is None else gib * GIB))
        return gpu if cut is None else gpu.cut(gpu._profile(cut))

    def _profile(self, name: str) -> Profile:
        known = {profile.name: profile for profile in profiles_of(self.name)}
        if name not in known:
            listed = f"it has {', '.join(known)}" if known else "no profiles of it are known here"
            raise InputError(f"cluster.node.gpu.mig_slice={name} is no MIG profile of {self.name}: {listed}")
        return known[name]

    def cut(self, profile: Profile) -> Gpu:
        """One slice: its memory channels, its share of the SMs, no NVLink; PCIe is shared by all slices of the GPU."""
        channels, sms = profile.size / profile.slices, profile.num_sms / self.num_sms
        copied, price = self.copy_bytes_per_s, self.price_per_hour

        def scaled(rates: Mapping[str, float]) -> dict[str, float]:
            return {name: rate * sms for name, rate in rates.items()}

        return replace(
            self,
            name=f"{self.name} {profile.name}",
            memory_bytes=int(profile.memory_gib * GIB),
            hbm_bytes_per_s=self.hbm_bytes_per_s * channels,
            num_sms=profile.num_sms,
            nvlink_bytes_per_s=0.0,
            pcie_bytes_per_s=self.pcie_bytes_per_s / profile.instances,
            mig_profile=profile.name,
            price_per_hour=None if price is None else price / profile.instances,
            copy_bytes_per_s=None if copied is None else copied * channels,
            peak_flops=scaled(self.peak_flops),
            gemm_flops=scaled(self.gemm_flops),
            sustained_flops=scaled(self.sustained_flops),
            attention_flops=scaled(self.attention_flops),
        )

    def peak(self, dtype: str) -> float | None:
        """Dense peak in FLOP/s for `dtype`; None where unknown."""
        return self.peak_flops.get(dtype)


@dataclass(frozen=True)
class Node:
    """One machine. `domains` are the NVSwitch domains: sets of local GPU indices with any-to-any NVLink."""

    gpu: Gpu = key(
        meaning="the GPUs of a node, all alike",
        example="an entry of configs/gpu is taken under defaults:, as `- /gpu@node.gpu: a100_sxm_80g`",
    )
    num_gpus: int = key(
        unit="GPUs", minimum=1, maximum=MOST_GPUS, meaning="GPUs of a node (or MIG slices, or ranks on CPUs)"
    )
    _: KW_ONLY
    domains: tuple[tuple[int, ...], ...]
    nvlink: str = key(
        "none", choices=("nvswitch", "direct", "bridge", "none"), meaning="how the GPUs of a domain are linked"
    )
    nvlinks: tuple[tuple[int, ...], ...] | None = key(
        None, unit="links", minimum=0, maximum=MOST_LINKS, example="[[0,1,2],[1,0,1],[2,1,0]]",
        meaning="NVLinks between every two GPUs (nvidia-smi topo -m), where nvlink=direct and pairs differ, as in a "
        "cube mesh: a row for each GPU. null: as many between any two of a domain",
    )  # fmt: skip
    num_nics: int = key(0, unit="NICs", minimum=0, meaning="NICs that carry traffic between GPUs")
    nic_of_gpu: tuple[int, ...] | None = key(
        None, unit="index", minimum=0, example="[0,0,1,1]",
        meaning="the NIC that each GPU is nearest to (nvidia-smi topo -m); it decides the GPU's rail. null: "
        "neighbouring GPUs share NICs, in order",
    )  # fmt: skip
    nic_names: tuple[str, ...] | None = key(
        None, example="[mlx5_0,mlx5_1]",
        meaning="the RDMA devices of these NICs, in order: what NCCL_IB_HCA and UCX_NET_DEVICES of ranks name. null: "
        "unknown, and the libraries choose",
    )  # fmt: skip
    interface: str | None = key(
        None, example="eth0",
        meaning="the network interface between nodes, which NCCL's and gloo's sockets then take; null: they choose",
    )  # fmt: skip
    nccl_topo_file: str | None = key(
        None, example="/opt/topo.xml",
        meaning="NCCL_TOPO_FILE of ranks, on virtual machines that hide their PCIe tree; null: unset",
    )  # fmt: skip
    numa_of_gpu: tuple[int, ...] | None = key(
        None, unit="index", minimum=0, example="[0,0,1,1]",
        meaning="the NUMA node of each GPU, as `launcher check` must find it and `show` draws it. null: unknown",
    )  # fmt: skip
    nic_gbps: float = key(0.0, unit="Gb/s", minimum=0, meaning="line rate of one NIC, per direction")
    cores: int = key(
        0, unit="cores", minimum=0, derived=True, meaning="CPU cores; 0: unknown; auto: counted on this machine"
    )
    host_memory_bytes: int = key(
        0.0, name="host_memory_gib", scale=GIB, unit="GiB", minimum=0, meaning="memory of the host; 0: unknown"
    )
    slices_per_gpu: int = key(
        1, unit="slices", minimum=1, meaning="MIG slices that a GPU is cut into; they have no peer-to-peer"
    )
    busbw_bytes_per_s: Mapping[str, float] = key(
        {}, name="busbw_gbytes_per_s", scale=1e9, unit="GB/s", above=0, names=("nvlink", "pcie", "leaf", "spine"),
        example="{nvlink: 230, leaf: 180}",
        meaning="measured bus bandwidth of large collectives by the slowest link that they cross (recipe collectives); "
        "over leaf and spine that of the whole node",
    )  # fmt: skip
    also_read: ClassVar = {
        "domains": only_read(
            tuple[tuple[int, ...], ...] | None, example="[[0,1],[2,3]]", minimum=0,
            meaning="NVSwitch domains as lists of GPUs; null: what nvlinks joins, else blocks of domain_size",
        ),
        "domain_size": only_read(
            int, 1, unit="GPUs", minimum=1, derived=True,
            meaning="GPUs of one NVSwitch domain, where domains and nvlinks are null; auto: all of the node",
        ),
    }  # fmt: skip

    @classmethod
    def from_keys(cls, given: dict[str, Any]) -> Node:
        """Domains are given as lists of GPUs or as equal blocks; else they are what NVLinks between pairs join."""
        size = given.pop("domain_size")
        size = given["num_gpus"] if size == AUTO else size
        pairs, listed = given["nvlinks"], given["domains"]
        if pairs and given["nvlink"] != "direct":
            raise InputError(
                f"cluster.node.nvlink={given['nvlink']} does not wire GPUs to each other as cluster.node.nvlinks says: "
                "set nvlink=direct, or nvlinks=null"
            )
        given["nvlinks"] = checked_counts(pairs, num_gpus=given["num_gpus"]) if pairs else None
        joined = components(given["nvlinks"]) if given["nvlinks"] and listed is None else listed
        given["domains"] = domains_of(joined, num_gpus=given["num_gpus"], size=size)
        given["cores"] = env.usable_cores() if given["cores"] == AUTO else given["cores"]
        for name in ("nic_of_gpu", "numa_of_gpu"):
            given[name] = of_each_gpu(name, given[name], given["num_gpus"])
        check_nics(given["nic_of_gpu"], given["nic_names"], num_nics=given["num_nics"])
        return cls(**given)

    def problems(self) -> list[str]:
        """Return the broken rules between keys: of the lists with an entry for each GPU or NIC, and of NVLinks."""
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        try:
            made = self.from_keys({**kept, "domain_size": 1})
        except InputError as error:
            return list(error.problems)
        cut = (name for name, value in kept.items() if getattr(made, name) != value)
        return [f"cluster.node.{name} is about GPUs that the node lacks" for name in cut]

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

    def nearest_nic(self, gpu: int) -> int:
        """The NIC that carries a GPU's traffic."""
        return self.nic_of_gpu[gpu] if self.nic_of_gpu else gpu * self.num_nics // self.num_gpus

    @cached_property
    def gpu_order(self) -> tuple[int, ...]:
        """Local GPU indices, domain by domain: the order in which ranks fill a node."""
        return tuple(gpu for domain in self.domains for gpu in domain)


@dataclass(frozen=True)
class Cluster:
    """Nodes and the fabric between them.

    `nodes_per_leaf` nodes share a leaf switch; traffic between leaves crosses the spine, which carries
    1/`oversubscription` of what the leaves could ask for. With `rails` such a set of nodes has one leaf switch for each
    rail, and what changes rails crosses the spine. Of three tiers, or a dragonfly, `nodes_per_pod` nodes share a spine
    (or are one group), and traffic between pods crosses the core, which carries 1/`core_oversubscription`. The GPUs of
    `nvlink_nodes` nodes are one NVSwitch domain.
    """

    name: str = key(meaning="name of the cluster, as its file's")
    num_nodes: int = key(1, unit="nodes", minimum=1, maximum=MOST_NODES, meaning="nodes of the job")
    _: KW_ONLY
    node: Node = key(meaning="the nodes, all alike")
    fabric: str = key(
        "none",
        choices=("infiniband", "efa", "roce", "slingshot", "ethernet", "none"),
        meaning="network between the nodes",
    )
    nvlink_nodes: int = key(
        1, unit="nodes", minimum=1, meaning="nodes that one NVSwitch domain joins, as 18 of a GB200 NVL72"
    )
    nodes_per_leaf: int = key(0, unit="nodes", minimum=0, meaning="nodes that share a leaf switch; 0: all of them")
    leaf_sizes: tuple[int, ...] | None = key(
        None, unit="nodes", minimum=1, example="[18,18,10]",
        meaning="nodes of each leaf, in the job's order, where leaves are unequal; null: nodes_per_leaf each",
    )  # fmt: skip
    rails: int = key(
        1, unit="planes", minimum=1, derived=True,
        meaning="leaf switches that a node is on, one for each of its rails; auto: one for each NIC (rail-optimised)",
    )  # fmt: skip
    oversubscription: float = key(
        1.0, unit="1", minimum=1, meaning="of the spine: what leaves may ask for over what it carries"
    )
    nodes_per_pod: int = key(
        0, unit="nodes", minimum=0,
        meaning="nodes that share a spine, below a third tier, or one group of a dragonfly; 0: all of them",
    )  # fmt: skip
    core_oversubscription: float = key(
        1.0, unit="1", minimum=1, meaning="between pods: what nodes may ask for over what the third tier carries"
    )
    pxn: bool = key(
        True,
        meaning="whether NCCL takes all-to-all traffic for another rail over NVLink to a GPU of that rail first (PXN, "
        "NCCL 2.12 and later), and not through the spine",
    )
    scheduler: str = key("local", choices=("local", "slurm"), meaning="what starts jobs there")
    price_per_node_hour: float | None = key(
        None, unit="USD", minimum=0, meaning="price of a node; null: node.gpu.price_per_hour for each GPU"
    )
    default_layout: Mapping[str, int] = key(
        {}, unit="ranks", minimum=1, names=DEGREES, example="{tp: 2, dp: 4}", meaning="degrees of a job that pins none"
    )
    measured: Measurements = key(NOTHING, meaning="what was measured on it (launcher calibrate)")

    @classmethod
    def from_keys(cls, given: dict[str, Any]) -> Cluster:
        """Without a number of rails each NIC is one."""
        rails = max(1, given["node"].num_nics) if given["rails"] == AUTO else given["rails"]
        return cls(**{**given, "rails": rails})

    def problems(self) -> list[str]:
        """Return the broken rules between keys: of rails, of tiers and of the network."""
        found, num_nics = [*self._uncontained()], self.node.num_nics
        if self.rails > 1 and (not num_nics or num_nics % self.rails):
            found.append(
                f"cluster.rails={self.rails} does not divide the {num_nics} NICs of a node of {self.name}: each "
                "rail takes as many of them; choose a divisor, auto for one rail to each NIC, or 1 where a node is on "
                "one leaf switch"
            )
        if self.num_nodes > 1 and not (num_nics and self.node.nic_gbps):
            found.append(
                f"cluster.num_nodes={self.num_nodes} needs a network between the nodes, and {self.name} has none: set "
                "cluster.node.num_nics and cluster.node.nic_gbps"
            )
        return found

    def _uncontained(self) -> Iterator[str]:
        """Yield each way in which tiers do not contain each other."""
        node, pod = self.node, self.nodes_per_pod
        if self.nvlink_nodes > 1 and (node.nvlink != "nvswitch" or len(node.domains) > 1):
            yield (
                f"cluster.nvlink_nodes={self.nvlink_nodes} joins nodes that are one NVSwitch domain each: set "
                "cluster.node.nvlink=nvswitch and cluster.node.domain_size=auto, or nvlink_nodes=1"
            )
        if self.leaf_sizes and sum(self.leaf_sizes) < self.num_nodes:
            yield (
                f"cluster.leaf_sizes={list(self.leaf_sizes)} holds {sum(self.leaf_sizes)} nodes, and there are "
                f"{self.num_nodes}: name every leaf, or set it to null"
            )
        split = [f"leaves of {end} nodes" for end in self.leaf_ends[:1] if pod and not self.leaf_sizes and pod % end]
        split += ["leaves of unequal sizes"] if pod and self.leaf_sizes and pod not in self.leaf_ends else []
        split += [f"NVSwitch domains of {self.nvlink_nodes} nodes"] if pod % self.nvlink_nodes else []
        if split:
            yield (
                f"cluster.nodes_per_pod={pod} splits {' and '.join(split)}: a pod has whole ones; choose a multiple, "
                "or 0 for one pod"
            )

    @cached_property
    def leaf_ends(self) -> tuple[int, ...]:
        """Nodes before which leaves end; of equal leaves the first, for the others are its multiples."""
        if self.leaf_sizes:
            return tuple(accumulate(self.leaf_sizes))
        return (self.nodes_per_leaf,) if self.nodes_per_leaf else ()

    def leaf(self, node: int) -> int:
        """The leaf switch of a node; nodes fill leaves in order."""
        if self.leaf_sizes:
            return bisect_right(self.leaf_ends, node)
        return node // self.nodes_per_leaf if self.nodes_per_leaf else 0

    def pod(self, node: int) -> int:
        """The pod of a node."""
        return node // self.nodes_per_pod if self.nodes_per_pod else 0

    def rail(self, local_rank: int) -> int:
        """The rail of a rank of a node: that of its NIC."""
        node, gpu = self.node, self.node.gpu_order[local_rank]
        if node.nic_of_gpu:
            return node.nic_of_gpu[gpu] * self.rails // node.num_nics
        return gpu * self.rails // node.num_gpus

    @property
    def domain_size(self) -> int:
        """GPUs of the smallest NVSwitch domain, on however many nodes it is."""
        return self.node.domain_size * self.nvlink_nodes

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
