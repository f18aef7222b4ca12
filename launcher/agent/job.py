"""What one node of a job runs."""

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
    """What one node is to run."""

    plan: Plan
    folder: RunFolder
    program: str  # the path of a script or program, or the name of a module
    args: Sequence[str]
    launch: LaunchSettings
    num_ranks: int
    num_threads: int
    binding: Binding

    @property
    def kind(self) -> str:
        """What the ranks run: a recipe, or the user's own script, module or program."""
        return self.plan.kind

    @property
    def sends_heartbeats(self) -> bool:
        """Whether the ranks are known to send heartbeats: those of a recipe; a program of the user's may."""
        return self.kind == RECIPE
