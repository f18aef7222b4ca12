"""Search over layouts, the reasons for what was chosen and rejected, and the plan record."""

from launcher.planner.record import Plan, read_plan, write_plan

__all__ = ["Plan", "read_plan", "write_plan"]
