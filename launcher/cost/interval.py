"""The uncertainty of an estimate: the interval of nine of ten measured runs, and the probability that a layout fits.

Set from published runs: it contains 95 of 100 with the constants as they are, 94 of 100 where the constants are fitted
without the stack that trained (tests/benchmarks/generalize.py). The more of a step ranks spend on communication that
nothing hides, the farther off it is, and the more so towards slower. What no run measured widens the interval.
"""

from __future__ import annotations

from math import erf, hypot, log, sqrt

from launcher.layout import Layout
from launcher.layout.job import Job

# Half widths of the interval of 90 %, faster and slower than the estimate: of a step without communication, and of a
# second of it that is not hidden. The two are independent errors. Set by 663 runs, each with the constants that were
# fitted without its software: by tensor parallelism alone intervals are wider on average, and contain half of the runs
# that communicate for more than 30 % of a step.
STEP, COMMUNICATION = (0.12, 0.12), (0.5, 1.0)
# On CPU ranks that were calibrated: what a machine does from minute to minute, and twice the mean error of the fit.
CALIBRATED_CPU, ERRORS = 0.12, 2.0
# With measured collectives: what is left of the second. An assumption, as no such run has been held against it.
WITH_CURVES = 0.5
UNMEASURED = 0.12  # for each thing below that no run with a published time shows
# Experts, by the published rates that there are, on H100: 468 TFLOP/s where 388 are estimated (Mixtral 8x7B, Megatron
# Core's README), 46 % of the peak where 38 are (Mixtral 8x22B, Liu et al. 2025, arXiv:2504.14960, from memory).
EXPERTS, UNMEASURED_EXPERTS = "expert parallelism", 0.22
# How much slower context parallelism may be: published steps take 1.1 (Llama 3 405B, table 4 of its paper) to 1.9 times
# what is estimated (torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, table 2).
SLOWER_CONTEXT = 0.9
MEASURED_GPUS = ("a100_sxm", "h100_sxm")
MEASURED_STACKS = ("megatron_lm", "megatron_deepspeed", "fsdp", "torchtitan", "internevo", "paddlenlp", "scaling")
LONGEST_SEQUENCE = 65536
# Of the logarithm of usable over estimated memory: the margin at which as many runs ran as ran out of memory, the
# spread, and the share of verdicts that no margin explains.
MARGIN, MARGIN_SPREAD, UNEXPLAINED = -0.05, 0.09, 0.01


def step_time_interval(job: Job, layout: Layout, step_time_s: float, communication_s: float) -> tuple[float, float]:
    """Seconds between which nine of ten runs take, `communication_s` of them on messages that nothing hides; narrower
    where the machine itself was measured.
    """
    cluster = job.cluster
    if cluster.node.gpu.kind == "cpu" and cluster.measured.engine.layer_s is not None:
        half = hypot(CALIBRATED_CPU, ERRORS * cluster.measured.engine.error)
        return step_time_s * max(0.0, 1 - half), step_time_s * (1 + half)
    share = communication_s / step_time_s * (WITH_CURVES if cluster.measured.collectives else 1.0)
    faster, slower = (hypot(step, share * moving) for step, moving in zip(STEP, COMMUNICATION, strict=True))
    wider = (UNMEASURED_EXPERTS if what == EXPERTS else UNMEASURED for what in unmeasured(job, layout))
    more = sqrt(sum(width**2 for width in wider))
    slower = hypot(slower, SLOWER_CONTEXT) if layout.cp > 1 else slower
    return step_time_s * (1 - hypot(faster, more)), step_time_s * (1 + hypot(slower, more))


def unmeasured(job: Job, layout: Layout) -> list[str]:
    """What of a job and its layout no published run shows that the estimates were held against."""
    found = {
        f"{job.cluster.node.gpu.name} GPUs": not _is_measured(job),
        f"stack={job.stack.name}": job.stack.name not in MEASURED_STACKS,
        "products in fp8": job.training.fp8,
        "context parallelism": layout.cp > 1,
        "an optimizer on the host": layout.offload_optimizer,
        EXPERTS: bool(job.model.num_experts),
        "experts between nodes": layout.ep * layout.tp > job.cluster.domain_size and layout.ep > 1,
        f"sequences of {job.model.seq_len}": job.model.seq_len > LONGEST_SEQUENCE,
        "tensor parallelism between nodes": layout.tp > job.cluster.domain_size,
    }
    return [what for what, missing in found.items() if missing]


def _is_measured(job: Job) -> bool:
    """Whether runs on such GPUs were compared, or this cluster was calibrated; a rate in a GPU's file is no run."""
    cluster, gpu = job.cluster, job.cluster.node.gpu
    calibrated = cluster.measured.date is not None and job.training.dtype in gpu.gemm_flops
    return gpu.name.startswith(MEASURED_GPUS) or calibrated


def most_bytes(usable_bytes: float, *, risk: float) -> float:
    """Bytes that a layout may be estimated to need for a chance of at most `risk` that it does not run."""
    low, high = 0.0, usable_bytes
    if risk >= 1 or fit_probability(usable_bytes, high) >= 1 - risk:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fit_probability(usable_bytes, middle) >= 1 - risk else (low, middle)
    return low


def fit_probability(usable_bytes: float, needed_bytes: float) -> float:
    """The chance that a layout which is estimated to need so much runs."""
    margin = (log(usable_bytes / needed_bytes) - MARGIN) / MARGIN_SPREAD
    return UNEXPLAINED + (1 - 2 * UNEXPLAINED) * 0.5 * (1 + erf(margin / sqrt(2)))
