"""Everything that one rank is started with: program, variables, streams and cores."""

from __future__ import annotations

from pathlib import Path

from launcher import env
from launcher.agent import rank_env
from launcher.agent.command import rank_command
from launcher.agent.fork_server import RankStart
from launcher.agent.job import NodeJob
from launcher.agent.output import Stream, may_read_stdin
from launcher.agent.rank_env import RankAssignment
from launcher.planner import Plan
from launcher.planner.record import RECIPE


def rank_start(
    job: NodeJob,
    assignment: RankAssignment,
    *,
    plan: Plan,
    plan_path: Path,
    streams: tuple[Stream, Stream],
    heartbeat_fd: int,
) -> RankStart:
    """Return what the fork server needs for a rank. `plan` is that of this round, at `plan_path`."""
    rank, folder, own = assignment.rank, job.folder, job.kind != RECIPE
    on_gpu = job.plan.job.cluster.node.gpu.kind == "cuda"
    logs = folder.logs if on_gpu else None
    stdout, stderr = streams
    return RankStart(
        local_rank=assignment.local_rank,
        kind=job.kind,
        program=job.program,
        args=tuple(job.args),
        variables={
            **rank_env.defaults(
                plan,
                env.environment(),
                num_threads=job.num_threads,
                nccl_logs=logs,
                local_rank=assignment.local_rank,
                left_unset=job.left_unset,
            ),
            **(rank_env.wandb_variables(env.environment(), run_folder=folder.path, rank=rank) if own else {}),
            **rank_env.torchrun_variables(assignment),
            **rank_env.plan_variables(plan, run_folder=folder.path, plan_path=plan_path),
            env.HEARTBEAT_FD: str(heartbeat_fd),
        },
        stdout=stdout.write_fd,
        stderr=stderr.write_fd,
        command=rank_command(job, assignment),
        cores=job.binding.of(assignment.local_rank),
        keeps_stdin=rank == job.launch.stdin_rank and may_read_stdin(),
    )
