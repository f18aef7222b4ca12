"""What the hardware is: value types, and readers that find it out. Knows no models and no layouts."""

from launcher.cluster.shape import Cluster, Gpu, Node

__all__ = ["Cluster", "Gpu", "Node"]
