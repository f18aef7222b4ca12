"""Pipeline stages and schedules of torch.distributed.pipelining, from a layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from launcher.layout import Layout
from launcher.model import Model
from launcher.worker.loss import vocab_range
from launcher.worker.transformer import StageShape

Schedule = Any
SPLIT_BACKWARD = frozenset({"zb_h1", "zbv"})  # schedules that compute input and weight gradients apart
_SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zb_h1": ScheduleInterleavedZeroBubble,  # with one stage per rank this is ZB-H1 (Qi et al. 2023)
    "zbv": ScheduleZBVZeroBubble,
}


def stages_of_rank(layout: Layout, pp_rank: int) -> list[int]:
    """The stages that a pipeline rank holds: round robin, or down and up again for the V-shaped schedule."""
    if layout.schedule == "zbv":
        return [pp_rank, 2 * layout.pp - 1 - pp_rank]
    return [pp_rank + i * layout.pp for i in range(layout.virtual_stages)]


def rank_of_stage(layout: Layout, stage: int) -> int:
    """The pipeline rank that holds a stage."""
    if layout.schedule == "zbv":
        return stage if stage < layout.pp else 2 * layout.pp - 1 - stage
    return stage % layout.pp


def make_stage(
    module: nn.Module, *, index: int, num_stages: int, examples: tuple[Tensor, Tensor], device: torch.device, group: Any
) -> PipelineStage:
    """A stage whose message shapes are known beforehand: otherwise torch runs an extra forward and backward."""
    return PipelineStage(
        module, index, num_stages, device, input_args=examples[0], output_args=examples[1], group=group
    )


def stage_examples(
    model: Model, layout: Layout, shape: StageShape, *, dtype: torch.dtype, tp_rank: int
) -> tuple[Tensor, Tensor]:
    """Input and output of a stage for one micro-batch, as meta tensors."""
    seq = model.seq_len // layout.cp
    inner = seq // layout.tp if layout.sequence_parallel else seq
    hidden = torch.empty(layout.micro_batch, inner, model.hidden, dtype=dtype, device="meta", requires_grad=True)
    ids = torch.empty(layout.micro_batch, seq, dtype=torch.int64, device="meta")
    start, end = vocab_range(model.vocab, rank=tp_rank, size=layout.tp)
    logits = torch.empty(layout.micro_batch, seq, end - start, dtype=dtype, device="meta", requires_grad=True)
    return (ids if shape.embedding else hidden), (logits if shape.head else hidden)


def make_schedule(
    layout: Layout, stages: list[PipelineStage], *, num_micro_batches: int, loss: Callable[[Tensor, Tensor], Tensor]
) -> Schedule:
    """The schedule of a layout. Gradients are not scaled: `loss` is already a part of the step's mean."""
    kind = _SCHEDULES[layout.schedule]
    stage = stages[0] if layout.schedule in ("gpipe", "1f1b") else stages
    return kind(stage, n_microbatches=num_micro_batches, loss_fn=loss, scale_grads=False)
