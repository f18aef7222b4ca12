"""Pipeline schedules: how long a step's micro-batches take over stages of unequal cost, and what waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PipelineTime:
    """Seconds of all micro-batches through the pipeline, and how much of that the busiest rank idles."""

    total_s: float
    bubble_s: float


def pipeline_time(
    schedule: str,
    *,
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    weight_s: Sequence[float],
    num_micro_batches: int,
    virtual_stages: int,
) -> PipelineTime:
    """Time of `num_micro_batches` micro-batches; the sequences hold each rank's seconds a micro-batch.

    The busiest rank works m·(F + B); filling and draining passes every other rank once. GPipe (Huang et al. 2019) and
    1F1B (Narayanan et al. 2019) wait (p-1)(F + B); interleaving v chunks a rank divides that by v (Narayanan et al.
    2021, section 2.2); ZB-H1 fills it with weight gradients: (p-1)(F + B_input - W), never below zero (Qi et al.
    2024, table 2).

    With unequal stages that is exact when the last is the busiest (it has the head), and otherwise an upper bound.
    """
    busy = [f + b for f, b in zip(forward_s, backward_s, strict=True)]
    worst = max(range(len(busy)), key=busy.__getitem__)
    others = sum(busy) - busy[worst]
    if schedule == "zb_h1":
        weights = sum(weight_s) - weight_s[worst]
        waits = max(0.0, others - 2 * weights)
    else:
        waits = others / virtual_stages
    work = num_micro_batches * busy[worst]
    return PipelineTime(work + waits, waits)


def in_flight(schedule: str, *, stage: int, num_stages: int, num_micro_batches: int, virtual_stages: int = 1) -> float:
    """Return the peak number of micro-batches with activations on a rank, in units of the rank's whole stage.

    GPipe holds all; 1F1B as many as there are stages from this one to the last, and so does ZB-H1 (Qi et al. 2024).
    Interleaved (Megatron-LM's warm-up): 2(p - rank - 1) + (v - 1)p + 1 chunks of a v-th each.
    """
    if schedule == "gpipe":
        return float(num_micro_batches)
    if virtual_stages > 1:
        chunks = 2 * (num_stages - stage - 1) + (virtual_stages - 1) * num_stages + 1
        return min(chunks, num_micro_batches * virtual_stages) / virtual_stages
    return float(min(num_stages - stage, num_micro_batches))
