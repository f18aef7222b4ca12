"""The hardware: value types, and readers that detect it. Independent of models and layouts."""

from launcher.cluster.shape import Cluster, Gpu, Node

__all__ = ["Cluster", "Gpu", "Node"]
