"""What one node of a job runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.agent.rank import MODULE, PROGRAM, RECIPE, SCRIPT
from launcher.agent.settings import LaunchSettings
from launcher.planner import Plan
from launcher.run.folder import RunFolder


@dataclass(frozen=True)
class NodeJob:
    """What one node is to run."""

    plan: Plan
    folder: RunFolder
    script: Path
    args: Sequence[str]
    launch: LaunchSettings
    num_ranks: int
    num_threads: int

    @property
    def kind(self) -> str:
        """What the ranks run: a recipe, or the user's own script, module or program."""
        return next((kind for kind in (SCRIPT, MODULE, PROGRAM) if self.plan.config.get(kind)), RECIPE)

    @property
    def sends_heartbeats(self) -> bool:
        """Whether the ranks are known to send heartbeats: those of a recipe; a program of the user's may."""
        return self.kind == RECIPE
