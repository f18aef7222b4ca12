"""Numbers at the end of a run, and per step: throughput, memory, the result document."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from launcher.planner.record import Plan
from launcher.units import format_seconds

RESULT_FILE = "result.json"


def throughput(plan: Plan, *, step_s: float) -> dict[str, float | None]:
    """Tokens/s of the whole job, and MFU: None where the device's peak is not known."""
    job, ranks = plan.job, plan.layout.world_size
    peak = job.cluster.node.gpu.peak(job.training.dtype)
    flops = job.model.step_flops(sequences=job.training.global_batch)
    tokens = job.training.global_batch * job.model.seq_len
    return {"tokens_per_s": tokens / step_s, "mfu": flops / (step_s * ranks * peak) if peak else None}


def peak_memory_bytes(device: torch.device) -> int:
    """This rank's peak: what torch allocated on a GPU; resident memory on a CPU, the interpreter included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def median_split(splits: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median over steps of each part of a step, in seconds."""
    return {name: median(split[name] for split in splits) for name in (splits[0] if splits else ())}


def describe_split(split: Mapping[str, float]) -> str:
    """The parts of a step in words. Those called exposed lie within forward and backward, except data parallelism's,
    which follows them; waiting in the pipeline includes its bubble.
    """
    known = {
        "data_s": "data",
        "forward_backward_s": "forward and backward",
        "exposed_tp_s": "in it tensor-parallel collectives",
        "exposed_cp_s": "in it context-parallel collectives",
        "exposed_pp_s": "in it waiting for other stages",
        "exposed_dp_s": "gradients after it",
        "optimizer_s": "optimizer",
    }
    return ", ".join(f"{known[name]} {format_seconds(split[name])}" for name in known if name in split)


@dataclass(frozen=True)
class Measured:
    """What this rank measured: medians over the steps after the first ones, and its peak of memory."""

    step_s: float | None  # None where a resumed run had no step left
    split_s: Mapping[str, float]
    memory_bytes: int


def result_document(
    plan: Plan, *, losses: Sequence[float], measured: Measured, first_step: int, stopped: bool
) -> dict[str, Any]:
    """What a run found, as plain data: the last line of its output and result.json.

    `losses` are those of the steps after `first_step`; none, and no measured time, where a resumed run had ended.
    """
    step_s = measured.step_s
    speed = {"tokens_per_s": None, "mfu": None} if step_s is None else throughput(plan, step_s=step_s)
    return {
        "recipe": "gpt",
        "engine": plan.job.training.engine,
        "layout": asdict(plan.layout),
        "world_size": plan.layout.world_size,
        "resumed_after_step": first_step,
        "losses": {
            "first": losses[0] if losses else None,
            "last": losses[-1] if losses else None,
            "all": list(losses),
        },
        "predicted_step_time_s": plan.estimate.get("step_time_s"),
        "measured_step_time_s": step_s,
        "measured_split_s": dict(measured.split_s),
        "predicted_memory_bytes": plan.estimate.get("memory_bytes_per_gpu"),
        "measured_memory_bytes": measured.memory_bytes,
        **speed,
        "stopped": stopped,
    }


def write_result(document: Mapping[str, Any], run_dir: Path) -> Path:
    """Write result.json, complete or not at all."""
    path = run_dir / RESULT_FILE
    temporary = path.with_name(f".{RESULT_FILE}.{os.getpid()}")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)
    return path
