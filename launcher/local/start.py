"""Run a plan's ranks on this machine."""

from __future__ import annotations

from pathlib import Path

from launcher.agent.node import run_node
from launcher.agent.settings import LaunchSettings
from launcher.errors import InputError
from launcher.planner import Plan
from launcher.run.folder import create_run_folder


def run_local(
    plan: Plan,
    *,
    run_folder: Path,
    launch: LaunchSettings,
    planned_at: float | None = None,
    began: float | None = None,
) -> int:
    """Run the ranks of a one-node plan here; return 0, or 1 if the job failed.

    Rank 0's output goes to the terminal, every rank's to `run_folder`/logs/rank-<r>.log, the launcher's messages to
    stderr. `began`: when the user entered the command, if before this process; `planned_at`: when the plan was made,
    if not just now (CLOCK_MONOTONIC). With launch.start=fork the calling process must be single-threaded.
    Raises InputError.
    """
    if plan.placement.num_nodes > 1:
        raise InputError(
            f"the plan needs {plan.placement.num_nodes} nodes, but this is one: "
            "use `launcher submit`, or set cluster.num_nodes=1"
        )
    folder = create_run_folder(run_folder.resolve())
    return run_node(plan, folder=folder, launch=launch, planned_at=planned_at, began=began)
