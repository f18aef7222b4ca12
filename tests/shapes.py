"""Small clusters, models and jobs for the tests of layouts and plans. Values, no configuration files."""

from __future__ import annotations

from typing import Any

from launcher.cluster import Cluster, Gpu, Node
from launcher.layout.job import Job
from launcher.model import Model, Training
from launcher.stacks import stack_of
from launcher.units import GIB


def gpu(*, memory_gib: float = 80, mig_profile: str | None = None) -> Gpu:
    """An A100-like GPU by its datasheet; `memory_gib` shrinks it."""
    return Gpu(
        name="a100_sxm_80g",
        kind="cuda",
        memory_bytes=int(memory_gib * GIB),
        hbm_bytes_per_s=2039e9,
        peak_flops={"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
        num_sms=108,
        nvlink_bytes_per_s=300e9,
        pcie_bytes_per_s=32e9,
        mig_profile=mig_profile,
        price_per_hour=2.0,
    )


def cluster(
    *,
    nodes: int = 1,
    domains: tuple[int, ...] = (8,),
    nodes_per_leaf: int = 0,
    rails: int = 1,
    memory_gib: float = 80,
    mig_profile: str | None = None,
) -> Cluster:
    """Return nodes with NVSwitch domains of these sizes."""
    starts = [sum(domains[:i]) for i in range(len(domains))]
    members = tuple(tuple(range(s, s + size)) for s, size in zip(starts, domains, strict=True))
    node = Node(
        gpu=gpu(memory_gib=memory_gib, mig_profile=mig_profile),
        num_gpus=sum(domains),
        domains=members,
        nvlink="nvswitch" if max(domains) > 1 else "none",
        num_nics=8,
        nic_gbps=200,
        cores=128,
    )
    return Cluster("test_cluster", nodes, node=node, fabric="infiniband", nodes_per_leaf=nodes_per_leaf, rails=rails)


def model(*, hidden: int = 1024, layers: int = 24, heads: int = 16, seq_len: int = 2048, num_experts: int = 0) -> Model:
    return Model(
        name="test_model",
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        ffn_hidden=4 * hidden,
        gated_mlp=False,
        vocab=51200,
        seq_len=seq_len,
        tied_embeddings=True,
        num_experts=num_experts,
        experts_per_token=2 if num_experts else 0,
    )


def job(
    *,
    on: Cluster | None = None,
    of: Model | None = None,
    global_batch: int = 64,
    stack: str = "megatron_lm",
    **habits: Any,
) -> Job:
    """A job that Megatron-LM trains; `habits` are those of `launcher.stacks.stack_of`."""
    return Job(on or cluster(), of or model(), Training(global_batch=global_batch), stack_of(stack, **habits))
