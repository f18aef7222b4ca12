"""Health of a node's ranks over one start: hangs with their stacks, slow ranks, the fork server."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Mapping, Sequence

from launcher import process
from launcher.agent import stack_dump
from launcher.agent.activity import ActivityWatch
from launcher.agent.failure import describe_hang
from launcher.agent.fork_server import ForkServer
from launcher.agent.job import NodeJob
from launcher.agent.output import Pump
from launcher.agent.rank import STACKS_SIGNAL
from launcher.agent.watch import Hang, RankWatch
from launcher.errors import LauncherError
from launcher.planner import Plan
from launcher.rendezvous.plan_ordered import PlanOrdered
from launcher.rendezvous.single_node import SingleNode
from launcher.run.folder import in_utc
from launcher.run.heartbeat import Heartbeats, Pace, RankState
from launcher.run.ledger import Ledger

PACE_S = 1.0  # between two reports to the coordinator
STOPPED_S = 10.0  # give up a fork server that stays stopped this long after SIGCONT


class Health:
    """Monitors the ranks of one start, from one `begin` to the next."""

    def __init__(
        self,
        job: NodeJob,
        *,
        handler: SingleNode | PlanOrdered,
        server: ForkServer,
        heartbeats: Heartbeats,
        pump: Pump,
        ledger: Ledger,
    ) -> None:
        self._job, self._handler, self._server = job, handler, server
        self._heartbeats, self._pump, self._ledger = heartbeats, pump, ledger
        self._server_stopped_at: float | None = None
        self.begin(job.plan, first_rank=0, node=0)

    def begin(self, plan: Plan, *, first_rank: int, node: int) -> None:
        """Reset before ranks are started; `first_rank` is the first of this node."""
        launch, now = self._job.launch, time.monotonic()
        self._plan, self._first_rank, self._node = plan, first_rank, node
        self._watch = RankWatch(
            launch.hang_timeout_s, launch.start_timeout_s, launch.straggler_factor, launch.straggler_steps
        )
        self._activity = ActivityWatch(launch.silence_timeout_s, process.cpu_seconds, now)
        self._started_at, self._shared_at = now, 0.0

    def states(self) -> dict[int, RankState]:
        """Return what each local rank has reported."""
        return {rank: self._heartbeats.state(rank) for rank in range(self._job.num_ranks)}

    def by_global_rank(self, states: Mapping[int, RankState]) -> dict[int, RankState]:
        return {self._first_rank + rank: state for rank, state in states.items()}

    def hang(self) -> Hang | None:
        """Return the ranks that hang, if any."""
        if not self._server.running:
            return None
        states, now = self.states(), time.monotonic()
        running = {rank: states[rank] for rank in self._server.running}
        return (
            self._watch.hang(states, now=now)
            or self._watch.start_hang(
                running, expected=self._job.sends_heartbeats, started_at=self._started_at, now=now
            )
            or self._silence(states, now=now)
        )

    def hang_elsewhere(self) -> Hang | None:
        """Return a hang that another node has announced; it will soon end the job or this round."""
        if not isinstance(self._handler, PlanOrdered) or not self._handler.take_hang() or not self._server.running:
            return None
        return Hang(tuple(self._server.running), 0.0, self._steps(), kind="elsewhere")

    def explain(self, hang: Hang, *, left: Sequence[int]) -> str:
        """Describe which ranks hang and where all ranks are; write stacks to the logs. `left`: ended with code 0."""
        pids = dict(self._server.running)
        found = stack_dump.dump(
            pids,
            number=STACKS_SIGNAL,
            printed=self._pump,
            send=lambda ranks: process.signal_all([pids[r] for r in ranks], STACKS_SIGNAL),  # not their children
        )
        for rank, pid in pids.items():
            if text := stack_dump.py_spy(pid):
                self._pump.note(rank, f"py-spy on a hang, {in_utc()}\n{text}")
        logs = self._job.folder.logs
        stack_dump.ask_nccl(logs, self.by_global_rank(self.states()))
        self._pump.drain()
        return describe_hang(hang, found, left=left, first_rank=self._first_rank, node=self._node, logs=logs)

    def keep_server_running(self) -> None:
        """Continue a stopped fork server and report it; raises LauncherError if it stays stopped."""
        if process.state(self._server.pid) != "T":
            self._server_stopped_at = None
            return
        now = time.monotonic()
        if self._server_stopped_at is None:
            self._server_stopped_at = now
            self._pump.notify(
                f"the fork server (pid {self._server.pid}) was stopped (SIGSTOP or a debugger), so no rank can be "
                "started or ended: continuing it"
            )
        if now > self._server_stopped_at + STOPPED_S:
            raise LauncherError(f"the fork server (pid {self._server.pid}) stays stopped after SIGCONT")
        process.signal_all([self._server.pid], signal.SIGCONT)

    def share(self) -> None:
        """Once a second, report to the coordinator; on its node, name the slow ranks of all nodes."""
        now = time.monotonic()
        if now - self._shared_at < PACE_S:
            return
        self._shared_at = now
        states = self.states()
        paces = {rank: Pace(state.step, state.own_s) for rank, state in self.by_global_rank(states).items()}
        if isinstance(self._handler, PlanOrdered):
            limit_s, silent_s = self._job.launch.silence_timeout_s, self._own_silence(states, now=now)
            paces = self._handler.share(paces, silent_s=silent_s, asks=limit_s is not None and silent_s > limit_s)
        self._name_stragglers(paces)

    def _name_stragglers(self, paces: Mapping[int, Pace]) -> None:
        grid = self._plan.grid
        stages = {rank: grid.coordinate(rank)["pp"] for rank in paces}
        for slow in self._watch.stragglers(paces, stages=stages):
            node = slow.rank // self._job.num_ranks
            host = self._plan.hosts[node] if node < len(self._plan.hosts) else socket.gethostname()
            self._pump.notify(
                f"rank {slow.rank} (node {node}, {host}) is slow: busy {slow.own_s:.3g} s per step, "
                f"{slow.factor:.1f} × the median of its peers, for {slow.steps} steps"
            )
            self._ledger.note("straggler", rank=slow.rank, own_s=slow.own_s, median_s=slow.median_s)

    def _silence(self, states: Mapping[int, RankState], *, now: float) -> Hang | None:
        """Return a hang if no rank of the job, on any node, has done anything for too long."""
        limit_s, handler = self._job.launch.silence_timeout_s, self._handler
        if limit_s is None:
            return None
        silent_s = self._own_silence(states, now=now)
        if isinstance(handler, PlanOrdered):
            silent_s = min(silent_s, handler.silent_s)
        if silent_s <= limit_s:
            return None
        return Hang(tuple(states), silent_s, self._steps(), kind="silence")

    def _steps(self) -> dict[int, int]:
        return {rank: state.step for rank, state in self.states().items()}

    def _own_silence(self, states: Mapping[int, RankState], *, now: float) -> float:
        signs = {rank: max(state.beat_at, self._pump.printed_at(rank)) for rank, state in states.items()}
        return self._activity.silent_s(self._server.running, signs, now=now)
