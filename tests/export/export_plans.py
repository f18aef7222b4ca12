"""Plans that exports are tried with, as overrides: every way to share out ranks and to run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from launcher.config.compose import load
from launcher.cost.model import CostModel
from launcher.layout import Layout
from launcher.layout.legality import problems
from launcher.layout.resolve import plain_layout
from launcher.planner.document import estimate_data
from launcher.planner.record import Plan

DGX = ("cluster=dgx_a100_80g",)
PLANS: dict[str, tuple[str, ...]] = {
    "plain dp": (*DGX, "model=gpt3_1b3", "train.global_batch=64", "layout.dp=8", "layout.micro_batch=4"),
    "zero3": (*DGX, "cluster.num_nodes=2", "model=llama2_13b", "train.global_batch=64", "layout.zero_stage=3",
              "layout.micro_batch=2", "layout.recompute=full"),
    "zero2": (*DGX, "model=llama2_7b", "train.global_batch=64", "layout.zero_stage=2", "layout.micro_batch=2"),
    "zero1": (*DGX, "model=llama2_7b", "train.global_batch=64", "layout.zero_stage=1", "stack=deepspeed",
              "layout.offload_optimizer=true"),
    "part": (*DGX, "stack=megatron_lm", "cluster.num_nodes=2", "model=gpt3_2b7", "train.global_batch=32",
             "layout.tp=2", "layout.pp=2", "layout.zero_stage=1", "layout.recompute=full",
             "layout.recompute_fraction=0.5", "layout.shard_group=2", "layout.offload_optimizer=true"),
    "zero3 with tp": (*DGX, "cluster.num_nodes=2", "model=llama2_13b", "train.global_batch=64", "layout.tp=4",
                      "layout.zero_stage=3"),
    "virtual stages": (*DGX, "cluster.num_nodes=4", "model=gpt3_6b7", "train.global_batch=64", "layout.tp=2",
                       "layout.pp=4", "layout.virtual_stages=4", "layout.zero_stage=1", "layout.sequence_parallel=true",
                       "layout.recompute=selective"),
    "uneven ends": (*DGX, "model=gpt3_2b7", "train.global_batch=32", "layout.tp=2", "layout.pp=4",
                    "layout.layer_split=[7,9,9,7]"),
    "uneven": (*DGX, "model=gpt3_2b7", "train.global_batch=32", "layout.tp=2", "layout.pp=4",
               "layout.layer_split=[7,8,10,7]", "layout.zero_stage=1"),
    "experts": (*DGX, "cluster.num_nodes=4", "model=mixtral_8x7b", "train.global_batch=64", "layout.tp=2",
                "layout.pp=2", "layout.ep=8", "layout.zero_stage=1", "layout.sequence_parallel=true",
                "layout.recompute=full"),
    "context": (*DGX, "cluster.num_nodes=2", "model=llama3_8b", "train.global_batch=32", "layout.tp=2", "layout.cp=4",
                "layout.zero_stage=3"),
    "context pipeline": (*DGX, "cluster.num_nodes=2", "model=llama3_8b", "train.global_batch=32", "layout.tp=2",
                         "layout.cp=2", "layout.pp=2", "layout.zero_stage=1"),
    "pipeline first": (*DGX, "cluster.num_nodes=4", "model=llama2_13b", "train.global_batch=64", "layout.tp=4",
                       "layout.pp=4", "layout.axis_order=tp-cp-pp-dp", "layout.zero_stage=1"),
    "data first": (*DGX, "model=llama2_7b", "train.global_batch=64", "layout.tp=2", "layout.pp=2",
                   "layout.axis_order=dp-tp-pp-cp", "layout.tp_across_domains=true"),
    "virtual stages unsharded": (*DGX, "cluster.num_nodes=4", "model=gpt3_6b7", "train.global_batch=64", "layout.tp=2",
                                 "layout.pp=4", "layout.virtual_stages=4", "layout.recompute=full"),
    "experts unpipelined": (*DGX, "cluster.num_nodes=4", "model=mixtral_8x7b", "train.global_batch=64", "layout.ep=8",
                            "layout.zero_stage=3", "layout.recompute=full"),
    "shared experts": (*DGX, "cluster.num_nodes=4", "model=gpt", "model.name=sparse", "model.hidden=2048",
                       "model.layers=16", "model.heads=16", "model.gated_mlp=true", "model.ffn_hidden=1024",
                       "model.num_experts=16", "model.experts_per_token=4", "model.shared_ffn_hidden=2048",
                       "model.dense_layers=2", "model.dense_ffn_hidden=8192", "train.global_batch=64", "layout.pp=2",
                       "layout.ep=8", "layout.zero_stage=1"),
    "zero bubble": (*DGX, "model=gpt3_2b7", "train.global_batch=32", "layout.pp=4", "layout.schedule=zb_h1"),
}  # fmt: skip

SCHEDULED = ("plain dp", "zero3", "virtual stages", "uneven", "experts", "context")  # for what starts any program
KINDS: dict[str, Callable[[Layout], bool]] = {
    "virtual stages": lambda layout: layout.virtual_stages > 1,
    "uneven stages": lambda layout: len(set(layout.layer_split)) > 1 and layout.virtual_stages == 1,
    "experts": lambda layout: layout.ep > 1,
    "context": lambda layout: layout.cp > 1,
    "zero3": lambda layout: layout.zero_stage == 3,
}


@cache
def plan_of(name: str, *more: str) -> Plan:
    """The plan of a name as it is pinned, not searched; open keys take their plain values."""
    settings = load([*PLANS[name], *more])
    layout = plain_layout(settings.job, settings.request)
    assert problems(settings.job, layout) == []
    return Plan(settings.job, layout, {"step_time_s": 1.0, "memory_bytes_per_gpu": 1.0}, (), settings.run_options)


def whole_plan_of(name: str) -> Plan:
    """With the whole estimate, as commands want it of a file."""
    plan = plan_of(name)
    return replace(plan, estimate=estimate_data(CostModel(plan.job).estimate(plan.layout)))
