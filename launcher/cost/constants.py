"""Every number of the cost model that is neither a datasheet's nor a formula's, in one frozen place.

`fitted` marks a constant that published step times have moved from its microbenchmark value. The script
tests/benchmarks/generalize.py holds those values as priors, refits, and leaves out one source at a time. None of the
constants is specific to a team, a model or a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """Units are in the names; `_fraction` is of the nameplate figure."""

    # The best GEMM that runs for seconds, of the peak: 271.2 of 312 TFLOP/s on A100 SXM (stas00 mamf-finder). What the
    # recipe `gemm` measures is such a rate.
    best_gemm_fraction: float = 0.869
    # Large GEMMs in training, of the peak: clocks stay low under the power limit, and shapes are not the best ones.
    # fitted
    gemm_fraction: float = 0.7599
    # What a block reaches at full clock, of the peak: the best short GEMM on a cool GPU, 291.8 to 298.3 of 312 TFLOP/s
    # (cuBLAS on DGX A100, FlagPerf).
    issue_fraction: float = 0.94
    # Prologue and epilogue of a tile, as extra length of the inner dimension at full clock: batched products with
    # k = 1024 and 256 run at 227.3 and 130.2 TFLOP/s (EleutherAI cookbook, A100), where issue_fraction would allow 293.
    # fitted
    gemm_extra_k: float = 287.2
    # HBM rate of streaming kernels: 1328 of 1555 GB/s copied on A100 40 GB (FlagPerf). fitted
    hbm_fraction: float = 0.761
    # From one kernel's last to the next one's first block on a stream, and the kernel's own ramp and tail, while its
    # blocks do not fill the GPU. fitted
    kernel_gap_s: float = 4.898e-06
    # Host time of a layer's pass in eager PyTorch, whatever its size (Python, dispatcher, launches, tensor-parallel
    # regions), forward and back, and of checkpointing it (random-generator states saved, restored): together 3.5 ms a
    # layer and micro-batch for small GPTs in Megatron-DeepSpeed (VIA-Research/vTrain ground truth, 8 × A100). fitted
    host_forward_s: float = 0.0009718
    host_backward_s: float = 0.001011
    host_checkpoint_s: float = 0.0003463
    # Host time of the schedule around a micro-batch: batch fetch and its broadcast, loss, synchronising sends. fitted
    host_micro_batch_s: float = 0.0004952
    # Host time of a step: gradient scan, norm and its synchronisation, optimizer launches, logging. fitted
    host_step_s: float = 1e-3
    # FlashAttention 2 and 1 at long sequence, fraction of peak, head dimension 128: 203 and 83 TFLOP/s forward and
    # backward together (flash-attention README charts, A100). Version 1 in Triton is another kernel: on A100 twice as
    # fast forward as in CUDA (Dao-AILab/flash-attention issue 405), slower back by its own notes. fitted
    flash2_fraction: float = 0.5292
    flash1_fraction: float = 0.25
    triton_fraction: float = 0.3028
    # Sequence length at which half of that rate is reached (same charts: 99, 133, 155, 173, 182 at 512 … 8k causal).
    flash_half_seq: float = 400.0
    # NCCL in training against nccl-tests, excluding waits and contention below; about 30 % slower with them (vTrain,
    # MICRO 2024). fitted
    collective_slowdown: float = 1.019
    # Time of an all-gather or reduce-scatter inside a node over that of an all-reduce of the same buffer: half the
    # passes, but every one starts again. 0.48 for 1 GiB at best (MSCCL++), 0.75 in Calculon; runs with and without
    # sequence parallelism agree with a half.
    gather_share: float = 0.5598
    # What a collective inside a layer waits for each other rank of its group, any of which may be the late one; the
    # host's own time does not hide it. A layer of a small GPT, bound by the host, takes 3.0 ms with tp = 1 and 3.7 to
    # 5.0 with tp = 8 (vTrain ground truth, hidden 1024, 1024 tokens; 1024 to 4096). fitted
    late_rank_s: float = 2.373e-05
    # How much longer bytes take inside a node that several groups share, than in the table of collectives.py, measured
    # with one group: runs with tp = 2 and 4 lose as much, whether four or two groups share it. No microbenchmark of
    # several groups at once is published; that of one group is 1 by definition. The only measure in training, vTrain's
    # (MICRO 2024), is 1.3 with its waits. It is far from 1 because groups start together, and their copies meet in
    # HBM and in the switch with those of products, and because it takes what late_rank_s leaves of waits. fitted
    group_contention: float = 1.548
    # Seconds that compute loses for each second of NCCL behind it inside a node: NCCL's blocks hold SMs and its copies
    # pass through HBM, and both run longer; ZeRO-3 runs on one node lose most of what overlap wins. Between nodes as
    # many bytes pass in more time (`local_s`): that makes 11 to 13 % with 50 GB/s a node, where Galvatron measured
    # 12.6 % (overlap coefficient 1.1256). Its own share of 0.87 is far from that microbenchmark's 0.126, which is for
    # the time that both take, not for the time in which the bytes would pass inside a node. fitted
    overlap_slowdown: float = 0.8718
    # The part of a tensor-parallel collective next to the weight gradient's GEMM that lengthens the pass: the backward
    # pass of a 22B layer takes 11.9 ms with about 2.2 ms of collectives and 11.2 ms of compute (Korthikanti et al.
    # 2022, table 4). fitted
    tp_overlap_cost: float = 0.2582
    # Of the rate that nccl-tests reach between nodes, what training does. The microbenchmark is 1 by definition: 192 of
    # 200 GB/s (DGX A100, NVIDIA/nccl issue 812), 187 (two Azure NDm A100 v4, mscclpp). It is far from it because
    # groups are larger than the two nodes of most tables (90.6 GB/s on four where 97.6 on two: Alpa's logs), buckets
    # end in small messages (FSDP's slow down below 33M elements: Zhao et al. 2023, section 3.2.1), every rank waits for
    # the latest one, and axes share NICs. All-to-all pays it too: MSCCL++ moves 1 GiB of 16 ranks in 23 ms, 36 are
    # estimated; DeepEP's kernels reach 43 to 58 GB/s a NIC of 50 on H800, 29 to 31 are estimated. fitted
    inter_node_fraction: float = 0.6758
    # Cross-entropy in plain operators, bytes per logit: 41 forward, 13 backward (from the last stage's extra time by
    # vocabulary, VocabularyParallelism artifact/exp_one_host.csv, A100); libraries with one fused kernel need less.
    # fitted
    loss_forward_bytes: float = 26.36
    loss_backward_bytes: float = 13.0
    # Fused softmax and attention dropout below the streaming rate: dropout of 268 M scores takes 1.2 ms where its bytes
    # would stream in 0.8 (EleutherAI cookbook, A100; random numbers bound it). fitted
    score_slowdown: float = 1.197
    # Softmax in separate fp32 operators, bytes per score: 7.6 ms for 268 M scores, 40 or more (EleutherAI cookbook,
    # A100). fitted
    math_softmax_bytes: float = 24.57
    # Optimizer's effective share of HBM: multi-tensor kernels, unscaling, norm. fitted
    optimizer_passes: float = 1.289
    # Bytes per logit next to the projection's output: the fp32 copy, which the loss and its gradient reuse, and the
    # gradient in the training dtype; and with F.cross_entropy in plain operators log-softmax and the gradients of its
    # result and its input, with blocks of two more fp32 copies that the allocator cannot join, where its segments do
    # not grow (set by published out-of-memory verdicts).
    loss_bytes: float = 6.0
    plain_loss_bytes: float = 12.0
    plain_loss_lost_bytes: float = 8.0
    # CUDA context, cuBLAS and NCCL workspaces, independent of the model.
    context_bytes: float = 0.5 * 2**30
    # NCCL's buffers of one communicator: 2 × channels × protocols (NCCL_BUFFSIZE 4 MiB).
    communicator_bytes: float = 0.15 * 2**30
    # Allocator, where the first backward pass allocates the gradients one by one: they stay in the largest blocks that
    # are free then, those of the logits. Without tensor parallelism the two copies above are all that is lost (0.8 of
    # 2.1 GB and 6.9 of 8.4, played through the allocator's algorithm by tests/truth/caching_allocator.py, and the
    # verdicts agree). With it, and without a pipeline (which loses a share of its activations:
    # stack.pipeline_fragmentation), published runs ran out of memory 3 to 7 GB earlier, and it is not known why: this
    # share of the smaller of gradients and logits is set by their verdicts: shares under 0.36 call three more
    # that ran out of memory fitting, shares up to 1 three more that ran not fitting.
    late_gradient_fraction: float = 0.36


DEFAULT = Constants()
