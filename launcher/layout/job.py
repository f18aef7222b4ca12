"""What is to be trained on what: the three values that planning takes besides the layout."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.cluster import Cluster
from launcher.model import Model, Training


@dataclass(frozen=True)
class Job:
    """A model, trained in a certain way, on a cluster."""

    cluster: Cluster
    model: Model
    training: Training
