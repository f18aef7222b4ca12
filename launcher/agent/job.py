"""The part of a job on one node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.agent.binding import Binding
from launcher.agent.settings import LaunchSettings
from launcher.planner import Plan
from launcher.planner.record import RECIPE
from launcher.run.folder import RunFolder


@dataclass(frozen=True)
class NodeJob:
    """The part of a job that one node runs."""

    plan: Plan
    folder: RunFolder
    program: str  # the path of a script or program, or the name of a module
    args: Sequence[str]
    launch: LaunchSettings
    num_ranks: int
    num_threads: int
    binding: Binding
    left_unset: Sequence[str] = ()  # variables that name what this node has not (fabric_variables.py)

    @property
    def kind(self) -> str:
        """The kind of program: a recipe, or the user's own script, module or program."""
        return self.plan.kind

    @property
    def sends_heartbeats(self) -> bool:
        """Whether the ranks certainly send heartbeats: recipes do; the user's programs may."""
        return self.kind == RECIPE
