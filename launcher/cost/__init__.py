"""Cost of a layout: step time and memory, each broken down into parts."""

from launcher.cost.estimate import Estimate
from launcher.cost.memory import Memory
from launcher.cost.model import CostModel

__all__ = ["CostModel", "Estimate", "Memory"]
