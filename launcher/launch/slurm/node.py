"""The agent of one node of a Slurm job: `python -m launcher.launch.slurm.node RUN_FOLDER`, once a node by srun."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from launcher import env
from launcher.errors import InputError, LauncherError
from launcher.launch.run_folder import create_run_folder
from launcher.launch.settings import LaunchSettings
from launcher.launch.slurm.record import read_submission
from launcher.launch.slurm.step import COORDINATOR
from launcher.plan import Plan, read_plan


class EarlySignals:
    """Signals that come while torch is still being imported: kept, and delivered when the agent listens."""

    def __init__(self, numbers: Sequence[signal.Signals]) -> None:
        self._came: list[int] = []
        for number in numbers:
            signal.signal(number, self._keep)

    def _keep(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)

    def deliver(self) -> None:
        """Send what came to this process again."""
        for number in self._came[:1]:
            os.kill(os.getpid(), number)


def node_index(plan: Plan) -> tuple[int, str]:
    """Which node of the plan this machine is, and its name there; raises InputError where it is none."""
    name = env.get("SLURMD_NODENAME") or socket.gethostname()
    if name not in plan.hosts:
        raise InputError(
            f"{name} is no node of the plan ({', '.join(plan.hosts)}): the job and its plan.json do not agree"
        )
    return plan.hosts.index(name), name


def run_node(run_folder: Path) -> int:
    """Start this node's ranks and keep them until the job is over; returns 0, or 1 where it failed."""
    plan = read_plan(run_folder)
    launch = LaunchSettings.from_config(plan.config.get("launch") or {})
    early = EarlySignals([s for s in launch.stop_signals if s != signal.SIGINT])
    submission = read_submission(run_folder)
    node, name = node_index(plan)
    folder = create_run_folder(run_folder)

    from launcher.board import Board
    from launcher.launch import fork_server, local
    from launcher.launch.output import Pump, rank_streams

    fork_server.preload((*local.PRELOADED, *local.recipe_preload(plan), *launch.preload))
    fork_server.check_forkable()
    num_ranks = plan.placement.ranks_per_node
    board = Board.create(num_ranks=num_ranks)
    logs = [(rank, folder.rank_log(rank)) for rank in range(node * num_ranks, (node + 1) * num_ranks)]
    streams = rank_streams(logs, console=launch.console)
    server = fork_server.ForkServer.start()
    try:
        from launcher.launch.agent import NodeJob, RankAgent, Stopped
        from launcher.launch.rendezvous import Meeting, PlanOrdered, derived_port

        pump = Pump([stream for pair in streams.values() for stream in pair])
        pump.start()
        run_id = f"{env.get('SLURM_JOB_ID')}-{env.get('SLURM_RESTART_COUNT') or 0}"
        host = env.get(COORDINATOR) or plan.hosts[0]
        meeting = Meeting(
            run_id=run_id,
            host=host,
            port=derived_port(run_id),
            num_nodes=plan.placement.num_nodes,
            node=node,
            name=name,
            hosts=plan.hosts,
            join_timeout_s=launch.join_timeout_s,
        )
        job = NodeJob(plan, folder, Path(submission.script), submission.args, launch, node, num_ranks, 1)
        agent = RankAgent(
            job, handler=PlanOrdered(meeting), server=server, board=board, pump=pump, streams=streams, tell=local.tell
        )
        agent.handle_signals()
        early.deliver()
        try:
            return 1 if agent.run().is_failed() else 0
        except Stopped as stopped:
            local.tell(str(stopped))
            return stopped.exit_code
        finally:
            pump.close()
    finally:
        server.close()


def main(argv: Sequence[str]) -> int:
    try:
        return run_node(Path(argv[0]))
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr, flush=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
