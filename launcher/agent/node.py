"""Runs one node's part of a job: preload, fork server, agent. Used by `launcher run` and under Slurm."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from launcher import env
from launcher.agent import fork_server, rank_env
from launcher.agent.binding import node_binding
from launcher.agent.command import checked_program
from launcher.agent.fabric_variables import left_unset, network_interfaces, rdma_devices
from launcher.agent.job import NodeJob
from launcher.agent.launch import program_of
from launcher.agent.output import Pump, rank_streams
from launcher.agent.settings import LaunchSettings
from launcher.agent.stopping import is_urgent
from launcher.console import notify
from launcher.errors import JobFailed, LauncherError
from launcher.planner import Plan
from launcher.planner.record import RECIPE
from launcher.rendezvous.config import Meeting, RendezvousConfig
from launcher.run.folder import RunFolder, create_run_folder
from launcher.run.heartbeat import Heartbeats
from launcher.run.ledger import Ledger, command_began
from launcher.run.node_state import node_that_is_done
from launcher.run.owner import cancelled_since_claim
from launcher.text import whole_number

if TYPE_CHECKING:
    from launcher.agent.rank_agent import RankAgent
    from launcher.rendezvous.plan_ordered import PlanOrdered
    from launcher.rendezvous.single_node import SingleNode

PRELOADED = ("torch", "torch.distributed")


@contextmanager
def _kept_signals(numbers: Sequence[signal.Signals]) -> Iterator[list[int]]:
    """Collect stop signals in a list until the agent handles them; a second one interrupts at once.

    Restores the handlers at the end.
    """
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)
        if is_urgent(came):
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_node(
    plan: Plan,
    *,
    folder: RunFolder,
    launch: LaunchSettings,
    node: int | None = 0,
    rendezvous: RendezvousConfig | None = None,
    began: float | None = None,
    planned_at: float | None = None,
) -> int:
    """Start the ranks of plan node `node` here and supervise them until the job is over; return 0, or 1 if it failed.

    `node` is None for a spare, which gets a lost node's place. `rendezvous` says where the nodes of the plan meet; a
    plan of one node needs none. An agent that comes back when the job of several nodes is complete or cancelled ends
    at once. `began`: when the command was typed, if not with this process; `planned_at`: when the plan was made, if
    not just now. The calling process must have one thread only with launch.start=fork. Raises InputError and
    LauncherError before any rank starts.
    """
    rendezvous = _with_settings(rendezvous, launch) if rendezvous and rendezvous.num_nodes > 1 else None
    if rendezvous and (ended := node_that_is_done(folder)) is not None:
        notify(f"nothing is left to do here: the job is complete, says {folder.node_state(ended)}")
        return 0
    if rendezvous and cancelled_since_claim(folder):
        raise JobFailed(f"nothing is left to do here: `launcher cancel` has ended the job in {folder.path}")
    ledger = Ledger(folder.ledger, node=node, began=command_began() if began is None else began)
    program, args = program_of(plan)
    launch = checked_program(launch, plan.kind, program)
    with (
        env.overridden(launch.environment),
        _kept_signals(launch.handled_signals()) as signals_before_agent,
    ):
        ledger.note("planned", at=planned_at)
        if launch.start == "fork":
            fork_server.preload((*PRELOADED, *recipe_preload(plan), *launch.preload))
            fork_server.check_forkable()
        ledger.note("preloaded")
        num_ranks = plan.placement.ranks_per_node if node is None else plan.placement.ranks_on(node)
        num_threads = _threads(plan, launch, num_ranks=num_ranks)
        binding = node_binding(plan, launch.bind, num_ranks=num_ranks)
        if said := binding.describe():
            notify(said)
        unset = left_unset(plan, adapters=rdma_devices(), interfaces=network_interfaces())
        for why in dict.fromkeys(unset.values()):
            notify(f"{why}; not set: {', '.join(name for name, its in unset.items() if its == why)}")
        job = NodeJob(plan, folder, program, args, launch, num_ranks, num_threads, binding, left_unset=tuple(unset))
        return _run_ranks(
            job, rendezvous=rendezvous, ledger=ledger, signals_before_agent=signals_before_agent, first_node=node == 0
        )


def join(run_folder: Path, plan: Plan, launch: LaunchSettings, *, node: int, name: str, meeting: Meeting) -> int:
    """`run_node` of a plan on several hosts, which its nodes go to by themselves: over ssh and under Slurm."""
    rendezvous = RendezvousConfig(
        **meeting._asdict(), num_nodes=plan.placement.num_nodes, node=node, name=name, hosts=plan.hosts
    )
    return run_node(plan, folder=create_run_folder(run_folder), launch=launch, node=node, rendezvous=rendezvous)


def _run_ranks(
    job: NodeJob,
    *,
    rendezvous: RendezvousConfig | None,
    ledger: Ledger,
    signals_before_agent: Sequence[int],
    first_node: bool,
) -> int:
    """Fork the server while this process is single-threaded; then create threads, sockets and the agent."""
    heartbeats = Heartbeats.create(num_ranks=job.num_ranks)
    streams = rank_streams(job.num_ranks, console=job.launch.console, first_node=first_node)
    server = fork_server.ForkServer.start(prepared=job.num_ranks if job.launch.start == "fork" else 0)
    ledger.note("server")
    try:
        pump = Pump({stream for pair in streams.values() for stream in pair})
        pump.start()
        try:
            from launcher.agent.rank_agent import RankAgent

            agent = RankAgent(
                job,
                handler=_handler(rendezvous),
                server=server,
                heartbeats=heartbeats,
                pump=pump,
                streams=streams,
                ledger=ledger,
            )
            agent.handle_signals(signals_before_agent)
            return _run(agent, exit_code=job.launch.exit_code)
        finally:
            pump.close()
    finally:
        server.close()


def recipe_preload(plan: Plan) -> tuple[str, ...]:
    """Return modules to import once before the recipe's ranks are forked (recipe.preload, and by engine)."""
    if plan.kind != RECIPE:
        return ()
    recipe = plan.options.recipe
    return (*recipe.preload, *recipe.preload_by_engine.get(plan.job.training.engine, ()))


def _with_settings(rendezvous: RendezvousConfig, launch: LaunchSettings) -> RendezvousConfig:
    return replace(
        rendezvous,
        min_nodes=min(launch.shrink_to, rendezvous.num_nodes) if launch.shrink_to else None,
        join_timeout_s=launch.join_timeout_s,
        rejoin_timeout_s=launch.rejoin_timeout_s,
        spare_wait_s=launch.spare_wait_s,
        last_call_s=launch.last_call_s,
    )


def _handler(rendezvous: RendezvousConfig | None) -> SingleNode | PlanOrdered:
    if rendezvous is None:
        from launcher.rendezvous.single_node import SingleNode

        return SingleNode(uuid.uuid4().hex)
    from launcher.rendezvous.plan_ordered import PlanOrdered

    return PlanOrdered(rendezvous)


def _run(agent: RankAgent, *, exit_code: str) -> int:
    from torch.distributed.elastic.rendezvous import RendezvousError

    try:
        failed = agent.run().is_failed()
        return (agent.failed_code if exit_code == "first" else 1) if failed else 0
    except JobFailed as failed:  # asked to stop, or another node ended the job
        notify(str(failed))
        return failed.exit_code
    except RendezvousError as error:
        raise LauncherError(str(error)) from error
    finally:
        agent.leave()


def _threads(plan: Plan, launch: LaunchSettings, *, num_ranks: int) -> int:
    """Return the OpenMP threads of each rank; print them if the launcher chose them."""
    if given := env.get("OMP_NUM_THREADS"):
        return whole_number(given) or 1
    if launch.omp_num_threads:
        return launch.omp_num_threads
    cores = min(plan.job.cluster.node.cores or env.usable_cores(), env.usable_cores())
    threads = rank_env.threads_per_rank(cores=cores, ranks=num_ranks)
    notify(
        f"OMP_NUM_THREADS={threads} for each of {num_ranks} ranks ({cores} cores); "
        "set it, or launch.omp_num_threads, to change that"
    )
    return threads
