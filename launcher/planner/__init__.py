"""The search over layouts, the reasons for its choices, and the plan record."""

from launcher.planner.record import Plan, read_plan, write_plan

__all__ = ["Plan", "read_plan", "write_plan"]
