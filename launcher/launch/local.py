"""Run a plan's ranks on this machine."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from launcher import env
from launcher.board import Board
from launcher.errors import InputError
from launcher.launch import fork_server, rank_env
from launcher.launch.output import Pump, rank_streams
from launcher.launch.run_folder import RunFolder, create_run_folder
from launcher.launch.settings import LaunchSettings
from launcher.plan import Plan

PRELOADED = ("torch", "torch.distributed")


def run_local(plan: Plan, *, run_folder: Path, script: Path, args: Sequence[str], launch: LaunchSettings) -> int:
    """Start the ranks of a one-node plan here and wait for them; returns 0, or 1 where the job failed.

    Rank 0's output goes to the terminal, every rank's to `run_folder`/logs/rank-<r>.log; what the launcher has to say
    goes to stderr. The calling process must have one thread only with launch.start=fork. Raises InputError.
    """
    if plan.placement.num_nodes > 1:
        raise InputError(
            f"the plan needs {plan.placement.num_nodes} nodes, and this is one: "
            "use `launcher submit`, or set cluster.num_nodes=1"
        )
    if not script.is_file():
        raise InputError(f"there is no script {script}: give the path of a Python file")
    folder = create_run_folder(run_folder)
    if launch.start == "fork":
        fork_server.preload((*PRELOADED, *recipe_preload(plan), *launch.preload))
        fork_server.check_forkable()
    return _run_node(plan, folder=folder, script=script, args=args, launch=launch)


def recipe_preload(plan: Plan) -> tuple[str, ...]:
    """Modules that the recipe wants imported once, before its ranks are forked (recipe.preload)."""
    return tuple((plan.config.get("recipe") or {}).get("preload") or ())


def _run_node(plan: Plan, *, folder: RunFolder, script: Path, args: Sequence[str], launch: LaunchSettings) -> int:
    num_ranks = plan.placement.ranks_per_node
    num_threads = _threads(plan, launch, num_ranks=num_ranks)
    board = Board.create(num_ranks=num_ranks)
    logs = [(rank, folder.rank_log(rank)) for rank in range(num_ranks)]
    streams = rank_streams(logs, console=launch.console)
    server = fork_server.ForkServer.start()
    try:
        from launcher.launch.agent import NodeJob, RankAgent, Stopped
        from launcher.launch.single_node import SingleNode

        pump = Pump([stream for pair in streams.values() for stream in pair])
        pump.start()
        job = NodeJob(plan, folder, script, args, launch, 0, num_ranks, num_threads)
        agent = RankAgent(
            job, handler=SingleNode(uuid.uuid4().hex), server=server, board=board, pump=pump, streams=streams, tell=tell
        )
        agent.handle_signals()
        try:
            return 1 if agent.run().is_failed() else 0
        except Stopped as stopped:
            tell(str(stopped))
            return stopped.exit_code
        finally:
            pump.close()
    finally:
        server.close()


def _threads(plan: Plan, launch: LaunchSettings, *, num_ranks: int) -> int:
    """OpenMP threads of each rank, announced where the launcher chose them."""
    if launch.omp_num_threads:
        return launch.omp_num_threads
    cores = min(plan.job.cluster.node.cores or env.usable_cores(), env.usable_cores())
    threads = rank_env.threads_per_rank(cores=cores, ranks=num_ranks)
    if not env.get("OMP_NUM_THREADS"):
        tell(
            f"OMP_NUM_THREADS={threads} for each of {num_ranks} ranks ({cores} cores); "
            "set it, or launch.omp_num_threads, to change that"
        )
    return threads


def tell(message: str) -> None:
    """A word to the person at the terminal."""
    print(f"launcher: {message}", file=sys.stderr, flush=True)
