"""Pipeline stages and schedules of torch.distributed.pipelining, from a layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from launcher.layout import Layout
from launcher.model import Model
from launcher.worker.metrics.span_recorder import SpanRecorder
from launcher.worker.model.loss import vocab_range
from launcher.worker.model.transformer import StageShape
from launcher.worker.parallel.parallelize import shards_messages
from launcher.worker.parallel.process_groups import Stopwatch

Schedule = Any
META = torch.device("meta")
_SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zb_h1": ScheduleInterleavedZeroBubble,  # with one stage per rank this is ZB-H1 (Qi et al. 2023)
}


def stages_of_rank(layout: Layout, pp_rank: int) -> list[int]:
    """Return the stages of a pipeline rank: round robin."""
    return [pp_rank + i * layout.pp for i in range(layout.virtual_stages)]


def rank_of_stage(layout: Layout, stage: int) -> int:
    """Return the pipeline rank of a stage."""
    return stage % layout.pp


class InFlightStage(PipelineStage):
    """torch's stage, with receive buffers for the micro-batches in flight.

    torch (2.13) has one for every micro-batch of a step, for its input and for its output's gradient, keeps them all,
    and keeps the inputs' gradients until the next step: with 64 micro-batches of 175B, 9.7 GB a rank.
    `watch` times its own work, forward and backward.
    """

    watch: Stopwatch
    spans: SpanRecorder

    def _setup_forward_recv_info(self, num_microbatches: int, has_backward: bool) -> None:
        with self._without_bytes():
            super()._setup_forward_recv_info(num_microbatches, has_backward)

    def _setup_backward_recv_info(self, num_microbatches: int) -> None:
        with self._without_bytes():
            super()._setup_backward_recv_info(num_microbatches)

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[Any]:
        self._place(self.args_recv_info[fwd_chunk_id], self.device)
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[Any]:
        if not self.is_last:
            self._place(self.grad_recv_info[bwd_chunk_id], self.device)
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        with self.spans.span("F", stage=self.stage_index, micro_batch=fwd_chunk_id), self.watch:
            output = super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        self._place(self.args_recv_info[fwd_chunk_id], META)
        return output

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        with self.spans.span("B", stage=self.stage_index, micro_batch=bwd_chunk_id), self.watch:
            super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)
        if not self.is_last:
            self._place(self.grad_recv_info[bwd_chunk_id], META)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        with self.spans.span("W", stage=self.stage_index, micro_batch=bwd_chunk_id), self.watch:
            super().backward_weight_one_chunk(bwd_chunk_id, *args, **kwargs)

    @contextmanager
    def _without_bytes(self) -> Iterator[None]:
        device, self.device = self.device, META
        try:
            yield
        finally:
            self.device = device

    def _place(self, infos: Iterable[Any], device: torch.device) -> None:
        """Give messages a buffer on `device`, fresh; on the meta device that is the memory of their shape alone.

        What is not received has no buffer. Which buffers get a gradient torch 2.11 decides at the set-up, and 2.13 at
        every use.
        """
        for info in infos:
            if (old := getattr(info, "buffer", None)) is not None:
                info.buffer = torch.empty_like(old, device=device, requires_grad=old.requires_grad)


def make_stage(
    module: nn.Module,
    *,
    index: int,
    num_stages: int,
    examples: tuple[Tensor, Tensor],
    device: torch.device,
    group: Any,
    watch: Stopwatch,
    spans: SpanRecorder,
) -> PipelineStage:
    """A stage with known message shapes: otherwise torch runs an extra forward and backward."""
    stage = InFlightStage(
        module, index, num_stages, device, input_args=examples[0], output_args=examples[1], group=group
    )
    stage.watch, stage.spans = watch, spans
    return stage


def stage_examples(
    model: Model, layout: Layout, shape: StageShape, *, dtype: torch.dtype, tp_rank: int
) -> tuple[Tensor, Tensor]:
    """Return input and output of a stage for one micro-batch, as meta tensors."""
    seq = model.seq_len // layout.cp
    inner = seq // layout.tp if shards_messages(layout, seq_len=model.seq_len) else seq
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
