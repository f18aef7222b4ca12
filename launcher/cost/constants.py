"""Every number of the cost model that is neither a datasheet's nor a formula's, in one frozen place.

`fitted` marks a constant that published step times have moved from its microbenchmark value: see
tests/benchmarks/generalize.py, which refits them, with their prior, leaving out one source at a time.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """Units are in the names; `_fraction` is of the nameplate figure."""

    # Tensor cores under load clock down to stay within the power limit: the best GEMM that runs for seconds reaches
    # 271 of 312 TFLOP/s on A100 SXM (stas00 mamf-finder), 253 on the 300 W PCIe card. fitted
    gemm_fraction: float = 0.86
    # Prologue and epilogue of a tile, as extra length of the inner dimension: 8192 × 4096 outputs run at 252.8 TFLOP/s
    # with k = 16384 and at 234.9 with k = 4096 (EleutherAI cookbook, A100). fitted
    gemm_extra_k: float = 300.0
    # HBM rate of streaming kernels: 1328 of 1555 GB/s copied on A100 40 GB (FlagPerf). fitted
    hbm_fraction: float = 0.82
    # From one kernel's last to the next one's first block on a stream, and the kernel's own ramp.
    kernel_gap_s: float = 2.5e-6
    # Host time of one operator in eager PyTorch (Python, dispatcher, launch), forward and through autograd. fitted
    host_forward_op_s: float = 11e-6
    host_backward_op_s: float = 6e-6
    # Host time of the schedule around a micro-batch: batch fetch and its broadcast, loss, synchronising sends. fitted
    host_micro_batch_s: float = 1e-3
    # Host time of a step: gradient scan, norm and its synchronisation, optimizer launches, logging. fitted
    host_step_s: float = 15e-3
    # FlashAttention 2 and 1 at long sequence, fraction of peak, head dimension 128: 203 and 83 TFLOP/s forward and
    # backward together (flash-attention README charts, A100). fitted
    flash2_fraction: float = 0.62
    flash1_fraction: float = 0.32
    # Sequence length at which half of that rate is reached (same charts: 99, 133, 155, 173, 182 at 512 … 8k causal).
    flash_half_seq: float = 400.0
    # NCCL inside training against nccl-tests: about 30 % slower (vTrain, MICRO 2024). fitted
    collective_slowdown: float = 1.25
    # Compute slows while NCCL's blocks hold SMs: 12.6 % measured by Galvatron (overlap coefficient 1.1256).
    overlap_slowdown: float = 0.13
    # Nodes wait for the slowest of them at every gradient reduction: spread of step times. fitted
    inter_node_fraction: float = 0.9
    # Cross-entropy in plain operators, bytes per logit: 41 forward, 13 backward (from the last stage's extra time by
    # vocabulary, VocabularyParallelism artifact/exp_one_host.csv, A100).
    loss_forward_bytes: float = 41.0
    loss_backward_bytes: float = 13.0
    # Softmax in separate fp32 operators, bytes per score: 7.6 ms for 268 M scores (EleutherAI cookbook, A100).
    math_softmax_bytes: float = 46.0
    # Optimizer's effective share of HBM: multi-tensor kernels, unscaling, norm. fitted
    optimizer_passes: float = 1.3
    # fp32 copies of the logits alive together at the loss's worst moment: the cast, and the softmax or its gradient.
    # fitted
    logits_fp32_copies: float = 2.0
    # CUDA context, cuBLAS and NCCL workspaces that are held whatever the model.
    context_bytes: float = 0.9 * 2**30
    # NCCL's buffers of one communicator: 2 × channels × protocols (NCCL_BUFFSIZE 4 MiB).
    communicator_bytes: float = 0.15 * 2**30
    # Allocator: blocks that are free but too small or in the wrong place, as a share of activations. fitted
    fragmentation_fraction: float = 0.06


DEFAULT = Constants()
