"""Profiles of Megatron-LM and of trainers that have its tensor and pipeline parallelism.

Years are those of commits in the repositories; a file that is named was read there.
"""

from __future__ import annotations

from launcher.stacks.change import (
    DEEPSPEED_ENGINE,
    DEEPSPEED_GATHERS,
    EAGER,
    FLASH,
    FLAT_MESSAGES,
    FP8_CASTS,
    LAYER_GATHERS,
    NO_PIPELINE_HABITS,
    OPTIMIZER_ON_GPU,
    PIPELINE_MEMORY,
    PLAIN_REDUCTION,
    USUAL,
    since,
)

MEGATRON_LM = (
    *USUAL,
    since(
        0,
        "megatron/model/transformer.py: bias_dropout_add and attention dropout at any p; query_key_value",
        calls_dropout=True,
        joint_qkv=True,
    ),
    since(
        0,
        "megatron/core/tensor_parallel/cross_entropy.py, _VocabParallelCrossEntropy: on the divided logits in fp32, "
        "with softmax and gradient in their place (GPTModel: parallel_output=True)",
        loss_parallel=True,
        wide_loss=False,
    ),
    since(0, "megatron/mpu/layers.py before async_tensor_model_parallel_allreduce", tp_overlap="none"),
    since(
        2022,
        "async_tensor_model_parallel_allreduce (commit 16c90445, September 2021; Korthikanti et al. 2022, 4.2.2)",
        tp_overlap="wgrad",
    ),
    since(0, "megatron/core/tensor_parallel/mappings.py, _reduce: sums what it is given", tp_reduce_dtype="train"),
    since(
        0,
        "megatron/training/arguments.py: --bf16 sets accumulate_allreduce_grads_in_fp32 (commit b4bc51b1, 2021); only "
        "--grad-reduce-in-bf16 of 2025 turns it off",
        grad_reduce_dtype="fp32_from_bf16",
    ),
    since(0, "before gradient_accumulation_fusion", fused_accumulation=False),
    since(2022, "gradient_accumulation_fusion (commit 83b1e42f, February 2022)", fused_accumulation=True),
    since(0, "examples/sc21 of 2021: torch's DDP without a pipeline", overlap_grad_reduce=True, pipeline_overlap=False),
    since(
        2022, "its own DDP, the default (--DDP-impl local), waits (Megatron-LM issue 428)", overlap_grad_reduce=False
    ),
    since(
        2024,
        "--overlap-grad-reduce (commit 2d5220a4, August 2023) is off by default; scripts with the distributed "
        "optimizer pass it, and none without (tests/functional_tests of August 2026: 69 of 105, and 0 of 228)",
        overlap_grad_reduce=True,
        pipeline_overlap=True,
        overlap_replicated=False,
    ),
    since(
        0,
        "transformer_engine/pytorch/module/base.py, get_weight_workspace: fp8 weights, with transposes on Hopper, are "
        "kept for a step's micro-batches (is_first_microbatch; megatron/core/extensions/transformer_engine.py)",
        caches_fp8=True,
    ),
    NO_PIPELINE_HABITS,
    since(0, "megatron/core/tensor_parallel/random.py repeats the whole layer", recompute_stops_early=False),
    since(
        0,
        "--activations-checkpoint-method uniform",
        recompute_modes=("none", "full"),
        recompute_fractions=(),
        schedules=("1f1b", "interleaved"),
        shard_group_stages=(),
    ),
    since(
        0,
        "Narayanan et al. 2021: data parallelism alone; what came later is below",
        zero_stages=(0,),
        pipeline_zero_stages=(0,),
        sequence_parallel=False,
        context_parallel=False,
    ),
    since(
        2022,
        "--use-distributed-optimizer (commit 329fe582, February 2022); --sequence-parallel (cfd2e216, April 2022)",
        zero_stages=(0, 1),
        pipeline_zero_stages=(0, 1),
        sequence_parallel=True,
    ),
    since(2024, "--context-parallel-size (commit 292543d3, October 2023; Core 0.4.0)", context_parallel=True),
    since(
        2024,
        "--transformer-impl is transformer_engine by default (commit e7b74a4b, April 2024), RMSNorm in one kernel; "
        "rotary positions are fused except with --no-rope-fusion (de9428a7, January 2024)",
        fused_norm=True,
        fused_rotary=True,
    ),
    since(
        2024,
        "megatron/core/fusions/fused_bias_swiglu.py (commit 8503f754, November 2023), except with "
        "--no-bias-swiglu-fusion; its backward pass needs the input alone",
        fused_activation=True,
    ),
    since(
        2025,
        "--data-parallel-sharding-strategy (commit d165a854, February 2025; custom_fsdp), without a pipeline",
        zero_stages=(0, 1, 2, 3),
    ),
    since(
        2022,
        "--recompute-granularity, --recompute-method block with --recompute-num-layers (Korthikanti et al. 2022)",
        recompute_modes=("none", "selective", "full"),
        recompute_fractions=(0.25, 0.5, 0.75),
    ),
    since(
        2025,
        "--account-for-embedding-in-pipeline-split and --account-for-loss-in-pipeline-split (commit ef490839, February "
        "2025; core/transformer/transformer_block.py builds no layer there)",
        empty_ends=True,
    ),
    since(2025, "--num-distributed-optimizer-instances (Megatron Core 0.11)", shard_group_stages=(1,)),
    since(
        2025,
        "--optimizer-cpu-offload with the distributed optimizer (Core 0.11: CHANGELOG.md, optimizer/cpu_offloading)",
        offload_stages=(1,),
    ),
)

MEGATRON_DEEPSPEED = (
    *USUAL,
    since(
        0,
        "a fork of the Megatron-LM of 2021, with its loss (megatron/core/tensor_parallel/cross_entropy.py)",
        calls_dropout=True,
        joint_qkv=True,
        loss_parallel=True,
        wide_loss=False,
        tp_overlap="none",
        tp_reduce_dtype="train",
        fused_accumulation=False,
        sequence_parallel=False,
        context_parallel=False,
    ),
    since(
        2023,
        "microsoft/Megatron-DeepSpeed, rebased on the Megatron-LM of 2023: async_tensor_model_parallel_allreduce, "
        "gradient_accumulation_fusion, --sequence-parallel",
        tp_overlap="wgrad",
        fused_accumulation=True,
        sequence_parallel=True,
    ),
    since(0, "deepspeed/runtime/bf16_optimizer.py sums bf16 gradients in fp32", grad_reduce_dtype="fp32_from_bf16"),
    since(
        0,
        "deepspeed/runtime/zero/config.py: overlap_comm is only on for ZeRO 3; without ZeRO engine.py reduces at the "
        "boundary (buffered_allreduce_fallback), with a pipeline at the end (pipe/engine.py, _exec_reduce_grads)",
        overlap_grad_reduce=False,
        pipeline_overlap=False,
    ),
    DEEPSPEED_ENGINE,
    *DEEPSPEED_GATHERS,
    since(
        0,
        "deepspeed/runtime/activation_checkpointing repeats the whole layer",
        recompute_stops_early=False,
        recompute_modes=("none", "full"),
        recompute_fractions=(),
    ),
)

# Aleph Alpha's trainer, published in 2024: https://github.com/Aleph-Alpha/scaling (files of commit 737f855).
SCALING = (
    EAGER,
    LAYER_GATHERS,
    PLAIN_REDUCTION,
    FLAT_MESSAGES,
    OPTIMIZER_ON_GPU,
    PIPELINE_MEMORY,
    FP8_CASTS,
    *FLASH,
    since(
        0,
        "src/scaling/core/nn/attention/attention.py: query_key_value; dropout measured in Hagemann et al. 2023: with "
        "separate attention kernels layouts run out of memory and time as if it ran (the 2024 default is p = 0)",
        calls_dropout=True,
        joint_qkv=True,
    ),
    since(
        0,
        "src/scaling/transformer/model/layers/lm_head.py: ColumnParallelLinear joins its output (parallel_output is "
        "False); losses/cross_entropy.py: F.cross_entropy on it in fp32",
        loss_parallel=False,
        wide_loss=True,
    ),
    since(
        0,
        "src/scaling/core/nn/mlp.py, ParallelSwiGLUMLP: two ColumnParallelLinear, each sums its input's gradient; with "
        "sequence parallelism norm/rms_norm.py gathers once and keeps what it gathered",
        joint_gate=False,
        gathers_again=False,
    ),
    since(
        0,
        "src/scaling/core/nn/linear/utils.py, _all_reduce: in its dtype, waits; column_parallel_linear.py: no overlap",
        tp_overlap="none",
        tp_reduce_dtype="train",
    ),
    since(
        0,
        "src/scaling/core/optimizer/parameter_group.py: gradients are the parameters' own, in their dtype, and reduced "
        "after the last micro-batch (optimizer.py, step)",
        grad_reduce_dtype="train",
        late_gradients=True,
        fused_accumulation=False,
        overlap_grad_reduce=False,
        pipeline_overlap=False,
    ),
    since(
        0,
        "src/scaling/core/optimizer/allreduce.py, allreduce_tensor_in_float32: buckets are copied, widened and summed "
        "whole, with ZeRO too (optimizer.py, step: communication will happen in full precision in case of bfloat)",
        widens_sums=True,
        reduces_whole=True,
    ),
    since(
        0,
        "src/scaling/core/nn/pipeline_schedule/train.py, after DeepSpeed's TrainSchedule: one transfer after another; "
        "embedding and head count as layers, measured in Hagemann et al. 2023 (40 layers on 2 stages fit no other way)",
        sends_in_turn=True,
        pipeline_groups=0,
        pipeline_ends=(1, 1),
        schedules=("1f1b",),
    ),
    since(
        0,
        "src/scaling/core/optimizer/optimizer_config.py: zero shards optimizer states over dp; "
        "src/scaling/core/topology/topology_config.py: sequence_parallel, and no axis that divides a sequence",
        zero_stages=(0, 1),
        pipeline_zero_stages=(0, 1),
        shard_group_stages=(),
        sequence_parallel=True,
        context_parallel=False,
    ),
    since(
        2024,
        "src/scaling/core/nn/parallel_module/pipeline_partitioning.py, pipe_partition_uniform: the norm counts too",
        pipeline_ends=(1, 2),
    ),
    since(
        0,
        "src/scaling/core/nn/parallel_module/activation_checkpointing.py repeats the whole layer",
        recompute_stops_early=False,
        recompute_modes=("none", "full"),
        recompute_fractions=(),
    ),
)
