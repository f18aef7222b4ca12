"""A plan in other launchers' terms: DeepSpeed JSON, Megatron-LM flags, torchtitan, accelerate, hostfile.

Each exporter says in comments (or in a `"_not_expressed"` list) what the target has no words for.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

from launcher.errors import InputError
from launcher.planner.deepspeed_config import deepspeed_config
from launcher.planner.options import TrainOptions
from launcher.planner.record import Plan
from launcher.schema import unknown_key


def export(plan: Plan, target: str) -> str:
    """The plan as text for `target`; raises InputError for an unknown target or a plan that it cannot express."""
    if target not in EXPORTERS:
        raise InputError(unknown_key(target, sorted(EXPORTERS)).replace("a known key", "a known export"))
    return EXPORTERS[target](plan)


def _deepspeed(plan: Plan) -> str:
    if plan.layout.cp > 1:
        raise InputError("DeepSpeed has no context parallelism of this kind: plan with layout.cp=1 to export it")
    return json.dumps(deepspeed_config(plan, TrainOptions.from_config(plan.config["train"])), indent=2) + "\n"


def _megatron(plan: Plan) -> str:
    """Megatron-LM's arguments; names from megatron/training/arguments.py, core 0.12."""
    layout, model, training = plan.layout, plan.job.model, plan.job.training
    flags: list[str | int] = [
        "--tensor-model-parallel-size", layout.tp,
        "--pipeline-model-parallel-size", layout.pp,
        "--context-parallel-size", layout.cp,
        "--micro-batch-size", layout.micro_batch,
        "--global-batch-size", training.global_batch,
        "--num-layers", model.layers,
        "--hidden-size", model.hidden,
        "--ffn-hidden-size", model.ffn_hidden,
        "--num-attention-heads", model.heads,
        "--seq-length", model.seq_len,
        "--max-position-embeddings", model.seq_len,
        *_megatron_switches(plan),
    ]  # fmt: skip
    words = [shlex.quote(str(flag)) for flag in flags]
    lines: list[str] = []
    for word in words:
        if word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines) + "\n"


def _megatron_switches(plan: Plan) -> list[str | int]:
    layout, model, training = plan.layout, plan.job.model, plan.job.training
    if layout.zero_stage > 1:
        raise InputError(
            f"Megatron-LM's distributed optimizer is ZeRO-1; this plan has ZeRO-{layout.zero_stage}: "
            "plan with layout.zero_stage=0 or 1 to export it"
        )
    if layout.virtual_stages == 1 and len(set(layout.layer_split)) > 1:
        raise InputError(
            f"Megatron-LM's flags take equal stages but for the first and last; this plan splits "
            f"{list(layout.layer_split)}: plan with a pp that divides the layers"
        )
    switches: list[str | int] = []
    if layout.virtual_stages > 1:
        per_stage = model.layers // (layout.pp * layout.virtual_stages)
        switches += ["--num-layers-per-virtual-pipeline-stage", per_stage]
    if layout.ep > 1:
        switches += ["--expert-model-parallel-size", layout.ep]
    if model.num_experts:
        switches += ["--num-experts", model.num_experts, "--moe-router-topk", model.experts_per_token]
    if model.kv_heads != model.heads:
        switches += ["--group-query-attention", "--num-query-groups", model.kv_heads]
    conditions = {
        "--sequence-parallel": layout.sequence_parallel,
        "--use-distributed-optimizer": layout.zero_stage == 1,
        "--overlap-grad-reduce": training.overlap_grad_reduce,
        "--swiglu": model.gated_mlp,
        "--disable-bias-linear": not model.bias,
        "--untie-embeddings-and-output-weights": not model.tied_embeddings,
        "--use-flash-attn": training.attention.startswith("flash"),
        "--bf16": training.dtype == "bf16",
        "--fp16": training.dtype == "fp16",
    }
    switches += [flag for flag, wanted in conditions.items() if wanted]
    switches += ["--normalization", "RMSNorm"] if model.norm == "rmsnorm" else []
    switches += ["--position-embedding-type", "rope"] if model.positions == "rotary" else []
    if layout.recompute == "selective":
        switches += ["--recompute-granularity", "selective"]
    if layout.recompute == "full":
        switches += ["--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", 1]
    return switches


def _torchtitan(plan: Plan) -> str:
    """A torchtitan job file's parallelism and training tables; keys from torchtitan/config (v0.2)."""
    layout, training = plan.layout, plan.job.training
    schedules = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved": "Interleaved1F1B", "zb_h1": "InterleavedZeroBubble"}
    sharded = layout.zero_stage > 0
    lines = [
        "[training]",
        f"local_batch_size = {training.global_batch // layout.dp}",
        f"global_batch_size = {training.global_batch}",
        f"seq_len = {plan.job.model.seq_len}",
        "",
        "[parallelism]",
        f"data_parallel_replicate_degree = {1 if sharded else layout.dp}",
        f"data_parallel_shard_degree = {layout.dp if sharded else 1}",
        f"fsdp_reshard_after_forward = {json.dumps('always' if layout.zero_stage == 3 else 'never')}",
        f"tensor_parallel_degree = {layout.tp}",
        f"context_parallel_degree = {layout.cp}",
        f"expert_parallel_degree = {layout.ep}",
        f"pipeline_parallel_degree = {layout.pp}",
        f"pipeline_parallel_schedule = {json.dumps(schedules[layout.schedule])}",
        f"pipeline_parallel_microbatch_size = {layout.micro_batch}",
        "",
        "[activation_checkpoint]",
        f"mode = {json.dumps(layout.recompute)}",
    ]
    return "\n".join(lines) + "\n"


def _accelerate(plan: Plan) -> str:
    """An `accelerate launch` configuration file; only data parallelism and ZeRO have words there."""
    layout, training = plan.layout, plan.job.training
    if layout.world_size != layout.dp:
        raise InputError(
            f"accelerate's configuration file has words for data parallelism only; this plan is {layout.brief()}: "
            "plan with layout.tp=1 layout.pp=1 layout.cp=1 to export it"
        )
    lines = [
        "compute_environment: LOCAL_MACHINE",
        f"distributed_type: {'DEEPSPEED' if layout.zero_stage else 'MULTI_GPU'}",
        f"mixed_precision: {'no' if training.dtype == 'fp32' else training.dtype}",
        f"num_machines: {plan.placement.num_nodes}",
        f"num_processes: {layout.world_size}",
        "machine_rank: 0",
        "main_training_function: main",
    ]
    if layout.zero_stage:
        lines += [
            "deepspeed_config:",
            f"  zero_stage: {layout.zero_stage}",
            f"  gradient_accumulation_steps: {layout.num_micro_batches(training.global_batch)}",
        ]
    return "\n".join(lines) + "\n"


def _hostfile(plan: Plan) -> str:
    """DeepSpeed's and mpirun's hostfile, hosts in the plan's order."""
    if not plan.hosts:
        raise InputError(
            "this plan names no hosts yet: export the hostfile from the run folder of a started job, "
            "or set launch.hosts=[node1,node2]"
        )
    return "".join(f"{host} slots={plan.placement.ranks_per_node}\n" for host in plan.hosts)


EXPORTERS: dict[str, Callable[[Plan], str]] = {
    "deepspeed": _deepspeed,
    "megatron": _megatron,
    "torchtitan": _torchtitan,
    "accelerate": _accelerate,
    "hostfile": _hostfile,
}
