"""The estimate of a layout before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.cost.interval import fit_probability, step_time_interval
from launcher.cost.memory import Memory
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.units import format_bytes, format_seconds

AXIS_NAMES = {"tp": "tensor", "cp": "context", "dp": "data", "pp": "pipeline", "ep": "expert"}
TIGHT = 0.95  # below this probability of fitting, the plan mentions it
SHOWN = 3  # of the parts of the memory
COMMUNICATION = ("tp_comm", "cp_comm", "ep_comm", "pp_comm", "dp_comm")  # parts of the time that nothing hides


@dataclass(frozen=True)
class Estimate:
    """Step time and memory of a layout. Seconds and bytes; FLOP rates in TFLOP/s per GPU, as the field quotes them.

    `time` breaks `step_time_s` down for the busiest rank: compute, tp_comm, cp_comm, ep_comm, pp_comm, dp_comm (the
    exposed part of each), bubble, optimizer; parts that end in `_hidden` overlap with compute and are not summed.
    `memory` breaks the worst rank's `memory_bytes_per_gpu` down: parameters, gradients, optimizer, activations, logits,
    buffers, context, fragmentation.
    `step_time_interval_s`: contains nine of ten runs. `fit_probability`: that a run does not run out of
    memory.
    MFU and HFU are None where the GPU's peak is not known.
    """

    step_time_s: float
    step_time_interval_s: tuple[float, float]
    fits: bool
    fit_probability: float
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

    @property
    def why(self) -> tuple[str, ...]:
        """Where time and memory go, in words."""
        return where_time_goes(self), where_memory_goes(self)

    def __repr__(self) -> str:
        memory = f"{format_bytes(self.memory_bytes_per_gpu)} of {format_bytes(self.usable_memory_bytes)} a GPU"
        return f"<Estimate {format_seconds(self.step_time_s)} a step, {memory}{'' if self.fits else ', does not fit'}>"


def estimate_of(
    job: Job,
    layout: Layout,
    step_time_s: float,
    time: Mapping[str, float],
    memory: Memory,
    *,
    flops: tuple[float, float],
    peak: float | None,
) -> Estimate:
    """The estimate with its rates: `flops` are a step's, of the model and those repeated; `peak` is a GPU's FLOP/s."""
    gpus = layout.world_size
    model_flops, repeated = flops
    rate = model_flops / step_time_s / gpus
    hardware = (model_flops + repeated) / step_time_s / gpus
    tokens = job.training.global_batch * job.model.seq_len / step_time_s / gpus
    price = job.cluster.price_per_gpu_hour
    return Estimate(
        step_time_s=step_time_s,
        step_time_interval_s=step_time_interval(job, layout, step_time_s, sum(time[part] for part in COMMUNICATION)),
        fits=memory.fits,
        fit_probability=fit_probability(memory.usable_bytes, memory.total_bytes),
        memory_bytes_per_gpu=memory.total_bytes,
        usable_memory_bytes=memory.usable_bytes,
        worst_stage=memory.stage,
        model_tflops_per_gpu=rate / 1e12,
        hardware_tflops_per_gpu=hardware / 1e12,
        mfu=rate / peak if peak else None,
        hfu=hardware / peak if peak else None,
        tokens_per_s_per_gpu=tokens,
        cost_per_million_tokens=price / 3600 / tokens * 1e6 if price is not None else None,
        memory=memory.parts,
        time=time,
    )


def step_flops(job: Job, recompute: str, *, stops_early: bool) -> tuple[float, float]:
    """Model FLOPs of a step, and those that recomputation adds: without a layer's last product where it stops early."""
    model, batch = job.model, job.training.global_batch
    tokens = batch * model.seq_len
    repeated = 0.0
    if recompute == "full":
        last_product = 2.0 * tokens * model.hidden * model.ffn_hidden if stops_early and not model.num_experts else 0.0
        repeated = model.layers_forward_flops(tokens=tokens) - model.layers * last_product
    elif recompute == "op":
        scores = 4.0 * model.layers * tokens * model.seq_len * model.attention_hidden
        repeated = 0.5 * (model.layers_forward_flops(tokens=tokens) - scores)
    elif recompute == "selective":
        repeated = 4.0 * model.layers * tokens * model.seq_len * model.attention_hidden
    return model.step_flops(sequences=batch), repeated


def where_time_goes(estimate: Estimate) -> str:
    """Describe the exposed parts of a step, largest first."""
    parts = sorted(exposed(estimate).items(), key=lambda item: -item[1])
    shares = [
        f"{label(name)} {share:.1%}" for name, seconds in parts if (share := seconds / estimate.step_time_s) >= 0.001
    ]
    faster, slower = map(format_seconds, estimate.step_time_interval_s)
    spread = f"nine of ten runs take {faster} to {slower}"
    return f"a step of {format_seconds(estimate.step_time_s)} ({spread}) is {', '.join(shares)}"


def where_memory_goes(estimate: Estimate) -> str:
    """Describe the memory use of the worst rank, its limit and its largest parts."""
    parts = sorted(estimate.memory.items(), key=lambda item: -item[1])[:SHOWN]
    largest = ", ".join(f"{label(name)} {format_bytes(size)}" for name, size in parts)
    used, usable = format_bytes(estimate.memory_bytes_per_gpu), format_bytes(estimate.usable_memory_bytes)
    fits = f"it fits with a probability of {estimate.fit_probability:.0%}"
    tight = (
        "" if estimate.fit_probability > TIGHT else f"; {fits}: leave more room with another layout or a smaller batch"
    )
    return f"memory is worst on stage {estimate.worst_stage}: {used} of {usable} usable ({largest}, …){tight}"


def exposed(estimate: Estimate) -> Mapping[str, float]:
    """Return the parts that add up to a step, without those that are overlapped."""
    return {name: seconds for name, seconds in estimate.time.items() if "hidden" not in name and seconds > 0}


def label(name: str) -> str:
    """Return the display name of a breakdown's part."""
    words = name.removesuffix("_s").removesuffix("_bytes").removesuffix("_exposed").replace("_", " ")
    axis, _, rest = words.partition(" ")
    return f"{AXIS_NAMES[axis]}-parallel {rest or 'communication'}" if axis in AXIS_NAMES else words
