"""The agent of one node of a Slurm job: `python -m launcher.slurm.node RUN_FOLDER`, once per node by srun."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import env
from launcher.agent.launch import read_launch
from launcher.agent.node import join
from launcher.agent.settings import LaunchSettings
from launcher.errors import InputError, LauncherError
from launcher.planner import Plan, read_plan
from launcher.rendezvous.authentication import SECRET
from launcher.rendezvous.config import Meeting, split_endpoint
from launcher.run.folder import RunFolder


def node_index(plan: Plan) -> tuple[int, str]:
    """Return this machine's node in the plan, and its name there; raises InputError if it is none."""
    name = env.get("SLURMD_NODENAME") or socket.gethostname()
    if name not in plan.hosts:
        raise InputError(
            f"{name} is not a node of the plan ({', '.join(plan.hosts)}): the job and its plan.json do not agree"
        )
    return plan.hosts.index(name), name


def coordinator(launch: LaunchSettings) -> tuple[str | None, int | None]:
    """Return where the plan's first node listens, host and port, as far as launch.coordinator gives them."""
    return split_endpoint(launch.coordinator) if launch.coordinator else (None, None)


def take_secret(name: str, *, num_nodes: int) -> str:
    """Take this start's secret out of the environment, so that no rank inherits it; raises InputError without one."""
    secret = env.take(SECRET)
    if secret is None and num_nodes > 1:
        raise InputError(
            f"{SECRET} did not reach the agent on {name}, which the other nodes would refuse: let srun and the "
            "container pass the environment on"
        )
    return secret or ""


def run_node(run_folder: Path) -> int:
    """Run this node's ranks until the job is over; return 0, or 1 if it failed."""
    names = RunFolder(run_folder)
    plan, launch = read_plan(names.present_plan), read_launch(names.launch).settings
    node, name = node_index(plan)
    run_id = env.get(env.RUN_ID) or f"{env.get('SLURM_JOB_ID')}-{env.get('SLURM_RESTART_COUNT') or 0}"
    host, port = coordinator(launch)
    secret = take_secret(name, num_nodes=plan.placement.num_nodes)
    meeting = Meeting(run_id, host or env.get(env.COORDINATOR) or plan.hosts[0], port, secret)
    return join(run_folder, plan, launch, node=node, name=name, meeting=meeting)


def main(argv: Sequence[str]) -> int:
    try:
        return run_node(Path(argv[0]))
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr, flush=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
