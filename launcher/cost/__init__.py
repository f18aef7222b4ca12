"""What a layout costs: step time and memory, each broken down to where it comes from."""

from launcher.cost.estimate import Estimate

__all__ = ["Estimate"]
