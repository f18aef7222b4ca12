"""The protocol of training engines, with two implementations (torch, deepspeed)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from launcher.planner.options import TrainOptions
from launcher.planner.record import Plan
from launcher.worker.data.batches import Batch
from launcher.worker.metrics.span_recorder import SpanRecorder
from launcher.worker.model.init import InitialWeights
from launcher.worker.parallel.mesh import Axes

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class StepResult:
    """The result of one optimizer step; the same on every rank. `times` are in seconds.

    `loss` is the mean over the global batch, `grad_norm` the norm before clipping (None if the engine hides it).
    """

    loss: float
    grad_norm: float | None
    times: Mapping[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """Trains one model with one layout; every rank of the plan has one and calls the same methods in lockstep."""

    def train_step(self, batch: Batch, *, lr: float) -> StepResult:
        """Run one optimizer step on this data-parallel rank's part of the global batch."""

    def state(self, *, loading: bool) -> dict[str, Any]:
        """Return this rank's shards of parameters and optimizer state by global name, to save or to load into."""

    def loaded(self) -> None:
        """Apply what a checkpoint wrote into the tensors of `state`."""


@dataclass(frozen=True)
class EngineContext:
    """The inputs for building an engine."""

    plan: Plan
    options: TrainOptions
    axes: Axes
    device: torch.device
    run_dir: Path
    spans: SpanRecorder = field(default_factory=SpanRecorder)  # by default of no step

    @cached_property
    def weights(self) -> InitialWeights:
        """The initial weights."""
        folder = Path(self.options.init_from) if self.options.init_from else None
        return InitialWeights(self.plan.job.model, seed=self.options.seed, folder=folder)
