"""What every training engine does: one protocol, two bodies (torch, deepspeed)."""

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
from launcher.worker.model.init import InitialWeights
from launcher.worker.parallel.mesh import Axes

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class StepResult:
    """One optimiser step; the same on every rank. `times` are seconds.

    `loss` is the mean over the global batch, `grad_norm` the norm before clipping (None where the engine hides it).
    """

    loss: float
    grad_norm: float | None
    times: Mapping[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """Trains one model under one layout; every rank of the plan holds one and calls the same methods in step."""

    def train_step(self, batch: Batch, *, lr: float) -> StepResult:
        """One optimiser step on this data-parallel rank's part of the global batch."""

    def state(self, *, loading: bool) -> dict[str, Any]:
        """This rank's part of parameters and optimizer state, named globally, as tensors to save or to load into."""

    def loaded(self) -> None:
        """Take over what a checkpoint wrote into the tensors of `state`."""


@dataclass(frozen=True)
class EngineContext:
    """What an engine is built from."""

    plan: Plan
    options: TrainOptions
    axes: Axes
    device: torch.device
    run_dir: Path

    @cached_property
    def weights(self) -> InitialWeights:
        """What the parameters start from."""
        folder = Path(self.options.init_from) if self.options.init_from else None
        return InitialWeights(self.plan.job.model, seed=self.options.seed, folder=folder)
