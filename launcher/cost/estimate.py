"""What is known about one layout of one job, before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """Step time and memory of a layout. Seconds and bytes; FLOP rates in TFLOP/s per GPU, as the field quotes them.

    `time` breaks `step_time_s` down for the busiest rank: compute, tp_comm, cp_comm, ep_comm, pp_comm, dp_comm (the
    exposed part of each), bubble, optimizer; what ends in `_hidden` runs behind compute and is not in the sum. `memory`
    breaks the worst rank's `memory_bytes_per_gpu` down: parameters, gradients, optimizer, activations, logits, buffers,
    context, fragmentation.
    MFU and HFU are None where the GPU's peak is not known.
    """

    step_time_s: float
    fits: bool
    memory_bytes_per_gpu: float
    usable_memory_bytes: float
    worst_stage: int
    model_tflops_per_gpu: float
    hardware_tflops_per_gpu: float
    mfu: float | None
    hfu: float | None
    tokens_per_s_per_gpu: float
    cost_per_million_tokens: float | None
    memory: Mapping[str, float]
    time: Mapping[str, float]
