"""Frozen values out of a resolved configuration: clusters, models, training, the layout as asked for."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from launcher import env
from launcher.cluster import Cluster, Gpu, Node
from launcher.config.fields import AUTO, Fields
from launcher.layout import LayoutRequest
from launcher.layout.degrees import RECOMPUTE_MODES, SCHEDULES
from launcher.layout.grid import axis_order_problem
from launcher.model import Model, Training
from launcher.model.training import ATTENTION_KERNELS, DTYPES, ENGINES, OPTIMIZERS
from launcher.units import GIB, MIB

NVLINKS = ("nvswitch", "direct", "bridge", "none")
BUSBW_LINKS = ("nvlink", "pcie", "leaf", "spine")
DEGREES = ("tp", "pp", "dp", "cp", "ep")
FABRICS = ("infiniband", "efa", "roce", "ethernet", "none")

# Far above what anybody has, and low enough for a search to end.
MOST_NODES, MOST_GPUS, MOST_LAYERS, MOST_SEQUENCES = 10**6, 10**4, 10**4, 10**8


def build_cluster(data: Mapping[str, Any], problems: list[str]) -> Cluster:
    """`cluster.*` as a Cluster."""
    fields = Fields(data, "cluster", problems)
    cluster = Cluster(
        name=fields.text("name"),
        num_nodes=fields.integer("num_nodes", minimum=1, maximum=MOST_NODES),
        node=_node(fields.nested("node")),
        fabric=fields.choice("fabric", FABRICS, "none"),
        nodes_per_leaf=fields.integer("nodes_per_leaf", 0, minimum=0),
        rails=fields.integer("rails", 1, minimum=1),
        oversubscription=fields.number("oversubscription", 1.0, minimum=1.0),
        scheduler=fields.choice("scheduler", ("local", "slurm"), "local"),
        price_per_node_hour=fields.optional_number("price_per_node_hour"),
        default_layout=_default_layout(fields),
    )
    fields.close()
    if cluster.num_nodes > 1 and not (cluster.node.num_nics and cluster.node.nic_gbps):
        problems.append(
            f"cluster.num_nodes={cluster.num_nodes} needs a network between the nodes, and {cluster.name} has none: "
            "set cluster.node.num_nics and cluster.node.nic_gbps"
        )
    return cluster


def _default_layout(fields: Fields) -> dict[str, int]:
    given = fields.mapping("default_layout")
    sound = {key: value for key, value in given.items() if key in DEGREES and type(value) is int and value > 0}
    if len(sound) < len(given):
        fields.problem(f"cluster.default_layout={dict(given)} must give numbers for some of {', '.join(DEGREES)}")
    return sound


def _node(fields: Fields) -> Node:
    gpu = _gpu(fields.nested("gpu"))
    num_gpus = fields.integer("num_gpus", minimum=1, maximum=MOST_GPUS)
    cores = fields.raw("cores", 0)
    node = Node(
        gpu=gpu,
        num_gpus=num_gpus,
        domains=_domains(fields, num_gpus),
        nvlink=fields.choice("nvlink", NVLINKS, "none"),
        num_nics=fields.integer("num_nics", 0, minimum=0),
        nic_gbps=fields.number("nic_gbps", 0.0, minimum=0.0),
        sockets=fields.integer("sockets", 1, minimum=1),
        cores=env.usable_cores() if cores == AUTO else fields.integer("cores", 0, minimum=0),
        host_memory_bytes=int(fields.number("host_memory_gib", 0.0, minimum=0.0) * GIB),
        slices_per_gpu=fields.integer("slices_per_gpu", 1, minimum=1),
        busbw_bytes_per_s={link: gbytes * 1e9 for link, gbytes in _busbw(fields).items()},
    )
    fields.close()
    return node


def _busbw(fields: Fields) -> dict[str, float]:
    """Measured bus bandwidths by link, in GB/s."""
    given = fields.mapping("busbw_gbytes_per_s")
    sound = {
        link: rate for link, rate in given.items() if link in BUSBW_LINKS and isinstance(rate, int | float) and rate > 0
    }
    if len(sound) < len(given):
        fields.problem(
            f"cluster.node.busbw_gbytes_per_s={dict(given)} must give GB/s for some of {', '.join(BUSBW_LINKS)}"
        )
    return sound


def _domains(fields: Fields, num_gpus: int) -> tuple[tuple[int, ...], ...]:
    """NVSwitch domains, as lists of GPU indices or equal blocks; GPUs that the node lacks fall away."""
    size = fields.integer("domain_size", 1, minimum=1)
    given = fields.raw("domains")
    if given is None:
        return tuple(tuple(range(i, min(i + size, num_gpus))) for i in range(0, num_gpus, size))
    members = sorted(gpu for domain in given for gpu in domain)
    if members != list(range(len(members))) or len(members) < num_gpus:
        fields.problem(f"cluster.node.domains={given} must name each of the {num_gpus} GPUs (0 to {num_gpus - 1}) once")
        return (tuple(range(num_gpus)),)
    clipped = (tuple(gpu for gpu in domain if gpu < num_gpus) for domain in given)
    return tuple(domain for domain in clipped if domain)


def _gpu(fields: Fields) -> Gpu:
    gpu = Gpu(
        name=fields.text("name"),
        kind=fields.choice("kind", ("cuda", "cpu")),
        memory_bytes=_memory_bytes(fields),
        hbm_bytes_per_s=fields.number("hbm_gbytes_per_s", above=0.0) * 1e9,
        peak_flops={dtype: float(tflops) * 1e12 for dtype, tflops in fields.mapping("peak_tflops").items()},
        gemm_flops={dtype: float(tflops) * 1e12 for dtype, tflops in fields.mapping("gemm_tflops").items()},
        num_sms=fields.integer("num_sms", minimum=1),
        nvlink_bytes_per_s=fields.number("nvlink_gbytes_per_s", 0.0, minimum=0.0) * 1e9,
        pcie_bytes_per_s=fields.number("pcie_gbytes_per_s", 0.0, minimum=0.0) * 1e9,
        compute_capability=fields.number("compute_capability", 0.0, minimum=0.0),
        mig_profile=fields.optional_text("mig_profile"),
        price_per_hour=fields.optional_number("price_per_hour"),
    )
    fields.close()
    return gpu


def _memory_bytes(fields: Fields) -> int:
    """`memory_mib` as nvidia-smi reports it, or `memory_gib`."""
    mib = fields.optional_number("memory_mib")
    gib = fields.optional_number("memory_gib")
    if mib is None and gib is None:
        fields.problem("cluster.node.gpu needs memory_gib or memory_mib")
    found = int(mib * MIB if mib is not None else (gib or 0.0) * GIB)
    if found < MIB and (mib, gib) != (None, None):
        fields.problem("cluster.node.gpu.memory_gib or memory_mib must be above 0")
    return found


def build_model(data: Mapping[str, Any], problems: list[str]) -> Model:
    """`model.*` as a Model; `auto` follows the family that the MLP belongs to."""
    fields = Fields(data, "model", problems)
    gated = fields.flag("gated_mlp", False)
    hidden = fields.integer("hidden", minimum=1)
    heads = fields.integer("heads", minimum=1)
    model = Model(
        name=fields.text("name"),
        hidden=hidden,
        layers=fields.integer("layers", minimum=1, maximum=MOST_LAYERS),
        heads=heads,
        kv_heads=fields.auto_integer("kv_heads") or heads,
        ffn_hidden=fields.auto_integer("ffn_hidden") or 4 * hidden,
        gated_mlp=gated,
        vocab=fields.integer("vocab", minimum=1),
        seq_len=fields.integer("seq_len", minimum=1),
        tied_embeddings=_auto(fields.auto_flag("tied_embeddings"), not gated),
        norm=fields.auto_choice("norm", ("layernorm", "rmsnorm")) or ("rmsnorm" if gated else "layernorm"),
        positions=fields.auto_choice("positions", ("learned", "rotary")) or ("rotary" if gated else "learned"),
        bias=_auto(fields.auto_flag("bias"), not gated),
        num_experts=fields.integer("num_experts", 0, minimum=0),
        experts_per_token=fields.integer("experts_per_token", 0, minimum=0),
        rope_theta=fields.number("rope_theta", Model.rope_theta, minimum=1.0),
        norm_eps=fields.number("norm_eps", Model.norm_eps, minimum=0.0),
    )
    fields.close()
    problems.extend([] if problems else _model_problems(model))
    return model


def _model_problems(model: Model) -> list[str]:
    found = []
    if model.heads and model.hidden % model.heads:
        found.append(f"model.hidden={model.hidden} must divide by model.heads={model.heads}: change one of them")
    if model.kv_heads and model.heads % model.kv_heads:
        found.append(f"model.heads={model.heads} must divide by model.kv_heads={model.kv_heads}: change one of them")
    if model.num_experts and not 1 <= model.experts_per_token <= model.num_experts:
        found.append(
            f"model.experts_per_token={model.experts_per_token} must be between 1 and num_experts={model.num_experts}"
        )
    return found


def _auto(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def build_training(data: Mapping[str, Any], cluster: Cluster, problems: list[str]) -> Training:
    """The part of `train.*` that speed, memory and the loss depend on; a recipe reads the rest."""
    fields = Fields(data, "train", problems)
    default_dtype = "bf16" if cluster.node.gpu.kind == "cuda" else "fp32"
    return Training(
        global_batch=fields.integer("global_batch", minimum=1, maximum=MOST_SEQUENCES),
        dtype=fields.auto_choice("dtype", DTYPES) or default_dtype,
        optimizer=fields.choice("optimizer", OPTIMIZERS, "adamw"),
        attention=fields.choice("attention", ATTENTION_KERNELS, "flash"),
        fused_norm=fields.flag("fused_norm", True),
        software_year=fields.integer("software_year", Training.software_year, minimum=2018, maximum=2100),
        engine=fields.choice("engine", ENGINES, "torch"),
        overlap_grad_reduce=fields.flag("overlap_grad_reduce", True),
        grad_reduce_dtype=fields.auto_choice("grad_reduce_dtype", DTYPES),
        tp_reduce_dtype=fields.auto_choice("tp_reduce_dtype", DTYPES),
        offload_optimizer=fields.flag("offload_optimizer", False),
        fused_rotary=fields.flag("fused_rotary", Training.fused_rotary),
        dropout=fields.auto_number("dropout", below=1.0),
        loss_parallel=fields.auto_flag("loss_parallel"),
        fused_accumulation=fields.auto_flag("fused_accumulation"),
        recompute_stops_early=fields.auto_flag("recompute_stops_early"),
    )


def build_request(data: Mapping[str, Any], cluster: Cluster, problems: list[str]) -> LayoutRequest:
    """`layout.*` as asked for; where no degree was pinned, a default layout that fills the cluster pins them."""
    fields = Fields(data, "layout", problems)
    degrees = {key: fields.auto_integer(key) for key in DEGREES}
    if not any(degrees.values()) and prod(cluster.default_layout.values()) == cluster.max_ranks:
        degrees |= {key: int(value) for key, value in cluster.default_layout.items()}
    zero_stage = fields.auto_integer("zero_stage", minimum=0)
    axis_order = None if fields.raw("axis_order", AUTO) == AUTO else fields.text("axis_order")
    request = LayoutRequest(
        **degrees,
        virtual_stages=fields.auto_integer("virtual_stages"),
        micro_batch=fields.auto_integer("micro_batch"),
        zero_stage=zero_stage,
        recompute=fields.auto_choice("recompute", RECOMPUTE_MODES),
        sequence_parallel=fields.auto_flag("sequence_parallel"),
        axis_order=axis_order,
        schedule=fields.auto_choice("schedule", SCHEDULES),
        layer_split=fields.integers("layer_split"),
        tp_across_domains=fields.flag("tp_across_domains", False),
    )
    fields.close()
    if zero_stage is not None and zero_stage > 3:
        problems.append(f"layout.zero_stage={zero_stage} is unknown: choose 0, 1, 2 or 3")
    if axis_order is not None and (message := axis_order_problem(axis_order)):
        problems.append(message)
    return request
