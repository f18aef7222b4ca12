"""The DeepSpeed engine: ZeRO 0–3 with tensor parallelism by an mpu, or PipelineModule with ZeRO-1.

`launcher.layout.engines` refuses the combinations that DeepSpeed silently trains wrong.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher import env
from launcher.files import write_json
from launcher.planner.deepspeed_config import full_config
from launcher.run.folder import RunFolder
from launcher.worker.data.batches import Batch
from launcher.worker.engines.deepspeed_state import DeepSpeedState
from launcher.worker.engines.engine import EngineContext, StepResult
from launcher.worker.engines.optim import make_inner
from launcher.worker.model.tensor_layers import TensorAxis, fill, mean_loss, shard_model
from launcher.worker.model.transformer import StageShape, Transformer
from launcher.worker.parallel.mesh import Axes
from launcher.worker.parallel.process_groups import ProcessGroup, Stopwatch


def build_deepspeed_engine(context: EngineContext) -> DeepSpeedEngine:
    """Build a DeepSpeed engine for the plan; rank 0 writes deepspeed.json into the run folder."""
    config = full_config(context.plan, context.options)
    if context.axes.rank == 0:
        write_json(RunFolder(context.run_dir).deepspeed_config, config)
    with quiet():
        deepspeed = import_deepspeed(context.device)
        deepspeed.init_distributed(dist.get_backend(), verbose=False)
        pipelined = context.plan.layout.pp > 1
        if pipelined:
            from launcher.worker.engines.deepspeed_pipeline import pipeline_module, record_passes

            module = pipeline_module(context)
        else:
            module = whole_module(context)
        decayed = [p for p in module.parameters() if p.dim() > 1]
        plain = [p for p in module.parameters() if p.dim() <= 1]
        groups = [(decayed, context.options.weight_decay), (plain, 0.0)]
        optimizer = make_inner(context.plan.job.training.optimizer, groups, context.options)
        mpu = None if pipelined else Mpu(context.axes)
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, mpu=mpu)
        if pipelined:
            record_passes(engine, context)
    return DeepSpeedEngine(engine, context)


class DeepSpeedEngine:
    """Trains through a DeepSpeed engine; see `launcher.worker.engines.engine.Engine`."""

    def __init__(self, engine: Any, context: EngineContext) -> None:
        self.inner = engine
        self._context = context
        self._state = DeepSpeedState(engine, context)
        self._stepping = Stopwatch(
            context.device
        )  # includes the last sums of gradients, which DeepSpeed does in its step
        self._num_micro_batches = context.plan.layout.num_micro_batches(context.plan.job.training.global_batch)

    def train_step(self, batch: Batch, *, lr: float) -> StepResult:
        start = time.perf_counter()
        for group in self.inner.optimizer.param_groups:
            group["lr"] = lr
        ids, targets = batch.ids.to(self._context.device), batch.targets.to(self._context.device)
        parts = list(zip(ids.chunk(self._num_micro_batches), targets.chunk(self._num_micro_batches), strict=True))
        pipelined = self._context.plan.layout.pp > 1
        loss = self._pipelined(parts) if pipelined else self._accumulated(parts)
        norm = self.inner.get_global_grad_norm()
        times = {} if pipelined else {"optimizer_s": self._stepping.take()}  # a pipeline's is inside its one call
        times = {"forward_backward_s": time.perf_counter() - start - times.get("optimizer_s", 0.0), **times}
        return StepResult(loss, None if norm is None else float(norm), times)

    def state(self, *, loading: bool) -> dict[str, Any]:
        return self._state.empty() if loading else self._state.gathered()

    def loaded(self) -> None:
        self._state.take_over()

    def _pipelined(self, parts: list[tuple[Tensor, Tensor]]) -> float:
        return float(self.inner.train_batch(iter(parts)))

    def _accumulated(self, parts: list[tuple[Tensor, Tensor]]) -> float:
        total = torch.zeros((), device=self._context.device)
        spans, vocab = self._context.spans, self._context.plan.job.model.vocab
        for number, (ids, targets) in enumerate(parts):
            with spans.span("F", stage=0, micro_batch=number):
                loss = mean_loss(self.inner(ids), targets, self._context.axes, vocab=vocab)
            with spans.span("B", stage=0, micro_batch=number):
                self.inner.backward(loss)
            with spans.span("optimizer"), self._stepping:
                self.inner.step()
            total += loss.detach()
        dist.all_reduce(total)
        return float(total) / (dist.get_world_size() * self._num_micro_batches)


class Mpu:
    """DeepSpeed's interface for model and data parallelism, by the plan's mesh."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes

    def get_model_parallel_rank(self) -> int:
        return self._axes.coordinate["tp"]

    def get_model_parallel_world_size(self) -> int:
        return self._axes.degree("tp")

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._axes.group("tp")

    def get_data_parallel_rank(self) -> int:
        return self._axes.coordinate["dp"]

    def get_data_parallel_world_size(self) -> int:
        return self._axes.degree("dp")

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._axes.group("dp")

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group


def whole_module(context: EngineContext) -> nn.Module:
    """Return the whole model, sharded over the tensor-parallel group."""
    model, training, group = context.plan.job.model, context.plan.job.training, context.axes.group("tp")
    recompute = context.plan.layout.recompute
    module = Transformer(model, StageShape.whole(model), kernel=training.attention, recompute=recompute)
    if group.size() > 1:
        shard_model(module, TensorAxis(ProcessGroup(group)), model=model)
    if model.tied_embeddings:
        module.tie()
    fill(module, prefix="", model=model, weights=context.weights, group=group)
    return module


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed without its shared-memory kernel, which is compiled at run time and ignores groups."""
    with env.overridden({"DS_ACCELERATOR": "cpu"} if device.type == "cpu" else {}):
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        get_accelerator()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep DeepSpeed's prints off stdout, which belongs to the recipe."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
