"""What is known about one layout of one job, before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """Step time and memory of a layout. Seconds and bytes; FLOP rates in TFLOP/s per GPU, as the field quotes them.

    `time` and `memory` are breakdowns of `step_time_s` and of the worst rank's `memory_bytes_per_gpu`.
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
