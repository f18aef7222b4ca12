"""Metrics that a rank computes about its run: throughput, peak memory, the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

from launcher import process
from launcher.planner.record import Plan
from launcher.run.metrics import StepMetrics, summarise_steps
from launcher.run.result import TrainResult


def throughput(plan: Plan, *, step_s: float) -> tuple[float, float | None]:
    """Tokens/s of the whole job, and MFU: None where the device's peak is not known."""
    job, ranks = plan.job, plan.layout.world_size
    peak = job.cluster.node.gpu.peak(job.training.dtype)
    flops = job.model.step_flops(sequences=job.training.global_batch)
    tokens = job.training.global_batch * job.model.seq_len
    return tokens / step_s, flops / (step_s * ranks * peak) if peak else None


def peak_memory_bytes(device: torch.device) -> int:
    """This rank's peak: what torch allocated on a GPU; resident memory on a CPU, the interpreter included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return process.peak_resident_bytes()


def forget_peak_memory(device: torch.device) -> None:
    """Count this rank's peak from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        process.forget_peak_resident()


def train_result(plan: Plan, steps: Sequence[StepMetrics], *, first_step: int, stopped: bool) -> TrainResult:
    """Of a run's `steps`: the losses after `first_step` (none where a resumed run had nothing left to do), and what is
    measured of all of them, those of earlier starts included, as status and report measure it.
    """
    measured = summarise_steps(steps)
    return TrainResult(
        recipe="gpt",
        engine=plan.job.training.engine,
        layout=asdict(plan.layout),
        world_size=plan.layout.world_size,
        resumed_after_step=first_step,
        losses=tuple(step.loss for step in steps if step.loss is not None and step.step > first_step),
        predicted_step_time_s=plan.estimate.get("step_time_s"),
        measured_step_time_s=measured.step_s,
        measured_split_s=measured.split_s,
        predicted_memory_bytes=plan.estimate.get("memory_bytes_per_gpu"),
        measured_memory_bytes=measured.memory_bytes,
        tokens_per_s=measured.tokens_per_s,
        mfu=measured.mfu,
        stopped=stopped,
    )
