"""Profiles of InternEvo and PaddleNLP."""

from __future__ import annotations

from launcher.stacks.change import (
    NO_PIPELINE_HABITS,
    USUAL,
    since,
)

INTERNEVO = (
    *USUAL,
    since(
        0,
        "InternEvo: flash-attention's rotary and cross-entropy kernels; RMSNorm in PyTorch unless apex is compiled "
        "(internlm/model/norm.py, later ops/norm.py: RMSNormTorch)",
        fused_rotary=True,
        fused_loss=True,
    ),
    since(
        0,
        "flash-attention's modules",
        calls_dropout=False,
        loss_parallel=True,
        wide_loss=False,
        tp_overlap="wgrad",
        tp_reduce_dtype="train",
    ),
    since(
        0,
        "internlm/model/linear.py (later modules/mlp.py), FeedForward: gate and up projections are products of their "
        "own; model/utils.py, FusedDenseFunc: each gathers its input, gathers it again for its weight's gradient, and "
        "reduces its input's gradient",
        joint_gate=False,
    ),
    since(
        0,
        "InternEvo: hybrid_zero_optim reduces in the training dtype",
        grad_reduce_dtype="train",
        fused_accumulation=False,
    ),
    since(
        0,
        "internlm/solver/optimizer/hybrid_zero_optim.py, broadcast_params: each rank broadcasts the parameters that it "
        "owns",
        dp_messages="per_owner",
    ),
    since(0, "InternEvo: overlap_sync_grad", overlap_grad_reduce=True, pipeline_overlap=False),
    NO_PIPELINE_HABITS,
    since(
        0,
        "InternEvo: activation_checkpoint repeats the whole layer; model.checkpoint is the share of layers "
        "(configs/_base_/models/internlm_20B.py)",
        recompute_stops_early=False,
        recompute_modes=("none", "full"),
        recompute_fractions=(0.25, 0.5, 0.75),
    ),
    since(
        0,
        "InternEvo: num_chunks above 1 interleaves; zero1.size is a part of dp (configs/_base_/models/internlm_20B.py)",
        schedules=("1f1b", "interleaved"),
        zero_stages=(0, 1),
        pipeline_zero_stages=(0, 1),
        shard_group_stages=(1,),
        sequence_parallel=True,
        context_parallel=False,
    ),
)

PADDLENLP = (
    *USUAL,
    since(
        0,
        "PaddleNLP: no dropout in Llama; ParallelCrossEntropy with tensor_parallel_output",
        calls_dropout=False,
        loss_parallel=True,
        wide_loss=True,
        tp_overlap="none",
        tp_reduce_dtype="train",
    ),
    since(
        2024,
        "paddle.incubate.nn.functional.swiglu (PaddleNLP pull requests 7967 and 8038, March 2024)",
        fused_activation=True,
    ),
    since(
        0, "PaddleNLP: group sharded reduces in the training dtype", grad_reduce_dtype="train", fused_accumulation=False
    ),
    since(0, "PaddleNLP: sharding_comm_overlap", overlap_grad_reduce=True, pipeline_overlap=True),
    NO_PIPELINE_HABITS,
    since(
        0,
        "paddle.distributed.fleet.utils.recompute repeats the whole layer; recompute_granularity core_attn",
        recompute_stops_early=False,
        recompute_modes=("none", "selective", "full"),
        recompute_fractions=(),
    ),
    since(
        0,
        "PaddleNLP: virtual_pp_degree interleaves; sharding_parallel_degree is a part of dp",
        schedules=("1f1b", "interleaved"),
        zero_stages=(0, 1, 2, 3),
        pipeline_zero_stages=(0, 1),
        shard_group_stages=(1, 2, 3),
        sequence_parallel=True,
        context_parallel=False,
    ),
    since(
        0,
        "paddlenlp/trainer/training_args.py: sharding takes offload with stage2, and with stage3, which moves "
        "parameters too",
        offload_stages=(2,),
    ),
)
