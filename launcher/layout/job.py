"""The input of planning except the layout: model, training, software and cluster."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.cluster import Cluster
from launcher.model import Model, Training
from launcher.stacks import Stack, stack_of


@dataclass(frozen=True)
class Job:
    """A model with its training settings, training software and cluster."""

    cluster: Cluster
    model: Model
    training: Training
    stack: Stack = None  # type: ignore[assignment]  # by default our own engine's

    def __post_init__(self) -> None:
        if self.stack is None:
            object.__setattr__(self, "stack", stack_of("launcher", engine=self.training.engine))
