"""Transformer shapes: parameters, FLOPs and activation bytes. Knows no hardware and no layout."""

from launcher.model.shape import Model
from launcher.model.training import Training

__all__ = ["Model", "Training"]
