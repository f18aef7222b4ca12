"""The torch engine: tensor and context parallelism × torch's pipeline schedules × data parallelism by ZeRO stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from launcher.layout.split import balanced_split
from launcher.worker.data.batches import Batch
from launcher.worker.engines.engine import TORCH_DTYPES, EngineContext, StepResult
from launcher.worker.engines.optim import Optimizer, make_shards
from launcher.worker.model.loss import cross_entropy_sum, vocab_range
from launcher.worker.model.tensor_layers import fill
from launcher.worker.model.transformer import StageShape, Transformer, stage_shapes
from launcher.worker.parallel.collectives import sum_all
from launcher.worker.parallel.context_parallel import positions_of
from launcher.worker.parallel.parallelize import (
    SPLIT_BACKWARD,
    accumulate_without_sync,
    shard_data_parallel,
    shard_stage,
)
from launcher.worker.parallel.process_groups import ProcessGroup, Stopwatch
from launcher.worker.parallel.shard_spec import ShardSpecs


class TorchEngine:
    """Trains a `Transformer` with plain torch; see `launcher.worker.engines.engine.Engine`."""

    def __init__(self, context: EngineContext) -> None:
        self._plan, self._axes, self._device = context.plan, context.axes, context.device
        self._layout, self._model = context.plan.layout, context.plan.job.model
        self._fsdp = self._layout.zero_stage > 0 and self._layout.dp * self._layout.cp > 1
        self._compute_dtype = TORCH_DTYPES[context.plan.job.training.dtype]
        self._num_micro_batches = self._layout.num_micro_batches(context.plan.job.training.global_batch)
        self._spans = context.spans
        watches = {axis: Stopwatch(self._device, recorder=self._spans, kind=axis) for axis in ("tp", "cp")}
        self._peers = {axis: ProcessGroup(self._axes.group(axis), watch) for axis, watch in watches.items()}
        self._chunks = Stopwatch(self._device)  # forward and backward of pipeline stages, without waiting for others
        shapes = stage_shapes(self._layout.layer_split or balanced_split(self._model, num_stages=self.num_stages))
        self.stages = {index: self._build_stage(shapes[index], context) for index in self._own_stages()}
        self._run = self._pipeline(shapes) if self._layout.pp > 1 else self._accumulate
        self._ddp = self._make_ddp()
        copies = {"head.weight": "tokens.weight"} if self._tied_apart() else {}
        shard_specs = ShardSpecs(self._axes, self._layout, self._model)
        shards = make_shards(self._named_parameters(), copies=copies, spec=shard_specs)
        self.optimizer = Optimizer(shards, context.plan.job.training.optimizer, context.options, groups=self._groups())
        if not self._fsdp and self._ddp is None:  # those two accumulate by hooks of their own, in fp32
            self.optimizer.accumulate_in_fp32()
        self._tied_group = self._make_tied_group()
        self._columns = self._own_columns()

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 holds the parameters."""
        return self._fsdp

    @property
    def num_stages(self) -> int:
        return self._layout.pp * self._layout.virtual_stages

    def train_step(self, batch: Batch, *, lr: float) -> StepResult:
        start = self._now()
        loss = self._run(*(tokens.to(self._device) for tokens in self._own_part(batch)))
        computed = self._now()
        reduction = dist.all_reduce(loss, async_op=True)  # overlaps with the optimizer
        with self._spans.span("dp"):
            self.optimizer.collect()
            self._average_gradients()
            self._sum_tied_gradients()
        reduced = self._now()
        with self._spans.span("optimizer"):
            norm = self.optimizer.step(lr)
            reduction.wait()
        value = float(loss) / (self._layout.tp * self._layout.dp * self._layout.cp)
        times = {"forward_backward_s": computed - start, "exposed_dp_s": reduced - computed}
        times |= self._exposed(computed - start)
        return StepResult(value, norm, times | {"optimizer_s": self._now() - reduced})

    def _exposed(self, forward_backward_s: float) -> dict[str, float]:
        """Return the time of forward and backward in collectives of tp and cp, and outside the stages' own work: in
        messages of the pipeline or waiting for them, including its bubble.
        """
        axes = [axis for axis in ("tp", "cp") if self._layout.degree(axis) > 1]
        times = {f"exposed_{axis}_s": self._peers[axis].watch.take() for axis in axes}
        if self._layout.pp > 1:
            times["exposed_pp_s"] = max(0.0, forward_backward_s - self._chunks.take())
        return times

    def state(self, *, loading: bool) -> dict[str, Any]:
        return self.optimizer.state(copies=loading)

    def loaded(self) -> None:
        self.optimizer.loaded()

    # -- building ------------------------------------------------------------------------------------------------

    def _build_stage(self, shape: StageShape, context: EngineContext) -> Transformer:
        training = context.plan.job.training
        with torch.device("meta"):
            stage = Transformer(self._model, shape, kernel=training.attention, recompute=self._layout.recompute)
            shard_stage(stage, self._peers, self._layout, model=self._model)
        if self._model.tied_embeddings:
            stage.tie()
        # FSDP2 keeps fp32 main shards and casts what it gathers; otherwise the optimizer holds the fp32 copies.
        dtype = torch.float32 if self._fsdp else self._compute_dtype
        self._materialise(stage, context, dtype=dtype)
        if self._model.tied_embeddings:
            stage.tie()
        if self._fsdp:
            self._shard(stage, context)
        return stage

    def _materialise(self, stage: Transformer, context: EngineContext, *, dtype: torch.dtype) -> None:
        """Allocate every parameter on the device and initialise this rank's part of it."""
        stage.to(dtype=dtype)
        stage.to_empty(device=self._device)
        fill(stage, prefix="", model=self._model, weights=context.weights, group=self._axes.group("tp"))

    def _shard(self, stage: Transformer, context: EngineContext) -> None:
        shard_data_parallel(
            stage,
            self._axes.shards,
            zero_stage=self._layout.zero_stage,
            keep_unsharded=self._layout.schedule in SPLIT_BACKWARD,
            compute_dtype=self._compute_dtype,
            reduce_dtype=TORCH_DTYPES[context.plan.job.stack.reduces_in(context.plan.job.training)],
        )

    def _make_ddp(self) -> DistributedDataParallel | None:
        """Use DDP, which overlaps reduction with the backward pass, except with pipelines or bf16 reduction."""
        layout = self._layout
        if self._fsdp or layout.dp * layout.cp == 1 or layout.pp > 1:
            return None
        if self._compute_dtype != torch.float32:
            return None
        return DistributedDataParallel(self.stages[0], process_group=self._axes.replicas, gradient_as_bucket_view=True)

    def _own_stages(self) -> list[int]:
        if self._layout.pp == 1:
            return [0]
        from launcher.worker.engines.pipeline import stages_of_rank

        return stages_of_rank(self._layout, self._axes.coordinate["pp"])

    def _named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for stage in self.stages.values():
            yield from stage.named_parameters()

    def _groups(self) -> Mapping[str, dist.ProcessGroup]:
        groups = {axis: self._axes.group(axis) for axis in self._axes.grid.axes if self._axes.degree(axis) > 1}
        shards = self._axes.shards
        return groups | {name: shards.get_group(name) for name in shards.mesh_dim_names or ()}

    def _own_columns(self) -> Tensor | None:
        """Return the positions of every sequence that belong to this rank, with context parallelism."""
        size, rank = self._layout.cp, self._axes.coordinate["cp"]
        if size == 1:
            return None
        return positions_of(rank, torch.device("cpu"), size=size, seq_len=self._model.seq_len)

    def _own_part(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self._columns is None:
            return batch.ids, batch.targets
        return batch.ids[:, self._columns], batch.targets[:, self._columns]

    # -- forward and backward ------------------------------------------------------------------------------------

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return this micro-batch's part of the mean loss of the rank's batch."""
        tokens = targets.numel() * self._num_micro_batches
        start, _ = vocab_range(self._model.vocab, rank=self._axes.coordinate["tp"], size=self._layout.tp)
        peers = self._peers["tp"] if self._layout.tp > 1 else None
        return cross_entropy_sum(logits, targets, start=start, peers=peers) / tokens

    def _accumulate(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Run micro-batches one after the other, without a pipeline."""
        stage, total = self.stages[0], torch.zeros((), device=self._device)
        module = self._ddp or stage
        pairs = list(zip(ids.chunk(self._num_micro_batches), targets.chunk(self._num_micro_batches), strict=True))
        for number, (part, wanted) in enumerate(pairs, 1):
            last = number == len(pairs)
            accumulate_without_sync(stage, zero_stage=self._layout.zero_stage, last=last)
            with nullcontext() if self._ddp is None or last else self._ddp.no_sync():
                with self._spans.span("F", stage=0, micro_batch=number - 1):
                    loss = self._loss(module(part), wanted)
                with self._spans.span("B", stage=0, micro_batch=number - 1):
                    loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _pipeline(self, shapes: list[StageShape]) -> Callable[[Tensor, Tensor], Tensor]:
        from launcher.worker.engines.pipeline import make_schedule, make_stage, stage_examples

        tp_rank, dtype = self._axes.coordinate["tp"], self._compute_dtype
        stages = []
        for index, module in self.stages.items():
            examples = stage_examples(self._model, self._layout, shapes[index], dtype=dtype, tp_rank=tp_rank)
            stages.append(
                make_stage(
                    module,
                    index=index,
                    num_stages=self.num_stages,
                    examples=examples,
                    device=self._device,
                    group=self._axes.group("pp"),
                    watch=self._chunks,
                    spans=self._spans,
                )
            )
        schedule = make_schedule(self._layout, stages, num_micro_batches=self._num_micro_batches, loss=self._loss)
        first, last = 0 in self.stages, self.num_stages - 1 in self.stages

        def run(ids: Tensor, targets: Tensor) -> Tensor:
            losses: list[Tensor] = []
            inputs = (ids,) if first else ()
            schedule.step(*inputs, target=targets if last else None, losses=losses, return_outputs=False)
            return (
                torch.stack([loss.detach() for loss in losses]).sum() if last else torch.zeros((), device=self._device)
            )

        return run

    # -- gradients -----------------------------------------------------------------------------------------------

    def _average_gradients(self) -> None:
        """Without FSDP2: the mean of the gradients over the data-parallel ranks, in buckets."""
        size = self._layout.dp * self._layout.cp
        if self._fsdp or self._ddp is not None or size == 1:
            return
        grads = [p.main.grad for p in self.optimizer.shards if p.main.grad is not None]
        sum_all(grads, self._axes.replicas, divide_by=size)

    def _tied_apart(self) -> bool:
        """Return whether a tied head is on another stage than the embedding."""
        return self._model.tied_embeddings and self.num_stages > 1

    def _make_tied_group(self) -> dist.ProcessGroup | None:
        """Create the group of the first and last stage if both have tied weights; every rank calls this."""
        if not self._tied_apart():
            return None
        from launcher.worker.engines.pipeline import rank_of_stage

        last = rank_of_stage(self._layout, self.num_stages - 1)
        mine = None
        for peers in self._axes.grid.groups("pp"):
            group = dist.new_group([peers[0], peers[last]])
            if self._axes.rank in (peers[0], peers[last]):
                mine = group
        return mine

    def _sum_tied_gradients(self) -> None:
        """Give both copies of a tied weight the sum of their gradients, so that they stay equal."""
        if not self._tied_apart():
            return
        tied = [p.main.grad for p in self.optimizer.shards if p.name in ("tokens.weight", "head.weight")]
        if self._tied_group is not None and tied and tied[0] is not None:
            dist.all_reduce(tied[0], group=self._tied_group)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
