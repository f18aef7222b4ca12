"""What a layout costs: step time and memory, each broken down to where it comes from."""

from launcher.cost.estimate import Estimate
from launcher.cost.memory import Memory
from launcher.cost.model import CostModel

__all__ = ["CostModel", "Estimate", "Memory"]
