"""The agent of one node: torch's elastic agent, with ranks from our fork server.

`SimpleElasticAgent` is torch's extension point for other ways to start workers; its abstract methods, with leading
underscores, are documented as the ones to implement. Other than those, this file uses only `_remaining_restarts`.
Tested with torch 2.13.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from launcher import env, process
from launcher.agent.failure import RankEnd, describe, first_failed
from launcher.agent.fork_server import Exit, ForkServer, RankStart
from launcher.agent.health import Health
from launcher.agent.job import NodeJob
from launcher.agent.output import Label, Pump, Stream
from launcher.agent.rank_env import RankAssignment
from launcher.agent.rank_start import rank_start
from launcher.agent.replan import plan_of_round
from launcher.agent.stopping import StopRequest, ask_to_stop, is_urgent
from launcher.agent.watch import Hang
from launcher.errors import JobFailed, LauncherError
from launcher.planner.record import write_plan
from launcher.rendezvous.plan_ordered import PlanOrdered
from launcher.rendezvous.single_node import SingleNode
from launcher.run.folder import in_utc
from launcher.run.heartbeat import Heartbeats
from launcher.run.ledger import Ledger
from launcher.run.node_state import NodeState
from launcher.run.owner import was_cancelled
from launcher.run.result import has_finished_since, written_at

UNKILLABLE_S = 60.0  # a process in an uninterruptible wait, as on a dead file system
_SETTLE_S = 0.1  # how long to collect related failures after the first one
_POLL_S = 0.25
_ELSEWHERE_S = 4 * _POLL_S  # lets the other nodes hear of a hang before its end reaches them
LAST_LINES = 200  # searched for a traceback


class Stopped(JobFailed):
    """The job was asked to stop and has stopped."""


class RankAgent(SimpleElasticAgent):
    """Starts, watches, restarts and ends the ranks of one node."""

    def __init__(
        self,
        job: NodeJob,
        *,
        handler: SingleNode | PlanOrdered,
        server: ForkServer,
        heartbeats: Heartbeats,
        pump: Pump,
        streams: Mapping[int, tuple[Stream, Stream]],
        ledger: Ledger,
    ) -> None:
        spec = WorkerSpec(
            role="default",
            local_world_size=job.num_ranks,
            rdzv_handler=handler,
            entrypoint=job.program,
            max_restarts=job.launch.max_restarts,
            monitor_interval=0.001,  # the real wait is in _monitor_workers, which wakes on events
        )
        super().__init__(spec, exit_barrier_timeout=10)  # the nodes agree on the end before this barrier
        self._job, self._handler, self._server, self._heartbeats = job, handler, server, heartbeats
        self._pump, self._streams, self._ledger = pump, streams, ledger
        self._health = Health(job, handler=handler, server=server, heartbeats=heartbeats, pump=pump, ledger=ledger)
        self._ends: list[RankEnd] = []
        self._why = ""
        self.failed_code = 1  # shell exit code of the rank that failed first
        self._plan, self._plan_path = job.plan, job.folder.present_plan
        self._oom_kills = process.oom_kills()
        self._signals: list[signal.Signals] = []
        self._stop = StopRequest()
        self._result_at_start = written_at(job.folder.result)
        self._stop_deadline: float | None = None
        self._watching = self._state_is_lost = False
        self._node = self._first_rank = 0
        self._step_at_start = 0
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def handle_signals(self, signals_before_agent: Sequence[int] = ()) -> None:
        """Handle the stop signals, including earlier ones; call once, in the main thread."""
        for number in self._job.launch.handled_signals():
            signal.signal(number, self._on_signal)
        for came in signals_before_agent:
            self._on_signal(came, None)

    def leave(self) -> None:
        """Leave the rendezvous; if this node ended the job, report the reason to the others."""
        if self._why and isinstance(self._handler, PlanOrdered):
            self._handler.close_for_all(self._why)
        self._handler.shutdown()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signals.append(signal.Signals(number))
        if not self._watching and len(self._signals) == 1:
            raise self._stopped_early()
        os.write(self._wake_write, b"x")

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        """Where all nodes have as many ranks, torch need not read a store, in which it could wait for a lost node."""
        equal = not self._job.plan.placement.node_ranks
        with env.overridden({"TORCH_ELASTIC_WORKER_IDENTICAL": "1" if equal else "0"}):
            super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: Any) -> dict[int, Any]:
        self._node = self._ledger.node = worker_group.group_rank
        self._ledger.begin()
        self._ledger.note("met")
        self._ends.clear()
        self._first_rank = worker_group.workers[0].global_rank
        self._plan_path = self._plan_of_round()
        self._health.begin(self._plan, first_rank=self._first_rank, node=self._node)
        self._pump.label({worker.local_rank: self._label(worker) for worker in worker_group.workers})
        ranks = [self._rank_start(worker_group, worker) for worker in worker_group.workers]
        for worker in worker_group.workers:
            self._heartbeats.clear(worker.local_rank)
        self._health.keep_server_running()
        pids = self._server.start_ranks(ranks)
        self._watching = True
        self._ledger.note("forked")
        self._write_state("running", pids)
        return pids

    def _plan_of_round(self) -> Path:
        """Return the path of this round's plan: the job's, or a new one for the present nodes and hosts."""
        handler, folder = self._handler, self._job.folder
        if not isinstance(handler, PlanOrdered) or handler.change.as_planned:
            if self._node == 0 and self._plan.layout != self._job.plan.layout:
                self._pump.notify(f"all nodes are back: {self._plan.layout.brief()} → {self._job.plan.layout.brief()}")
            self._plan = self._job.plan
            return folder.present_plan
        self._plan = plan_of_round(self._job.plan, handler.change)
        path = folder.plan_of_round(handler.round)
        try:
            write_plan(self._plan, path)
        except OSError as error:
            raise LauncherError(f"cannot write the plan of this round, {path} ({error.strerror})") from error
        if self._node == 0 and handler.change.absent:
            nodes = ", ".join(map(str, handler.change.absent))
            self._pump.notify(
                f"going on without node {nodes}: {self._job.plan.layout.brief()} → {self._plan.layout.brief()} ({path})"
            )
        return path

    def _restarts(self) -> int:
        """Return how often the ranks were started before, equal on all nodes: torch uses it in store keys."""
        starts = self._handler.round if isinstance(self._handler, PlanOrdered) else self._ledger.start
        return starts - 1

    def _label(self, worker: Any) -> Label:
        rank = worker.global_rank
        header = f"rank {rank} of {worker.world_size}, start {self._ledger.start}, {in_utc()}"
        return Label(rank, self._job.folder.rank_log(rank), header)

    def _rank_start(self, group: Any, worker: Any) -> RankStart:
        job = self._job
        assignment = RankAssignment(
            rank=worker.global_rank,
            world_size=worker.world_size,
            local_rank=worker.local_rank,
            local_world_size=job.num_ranks,
            node=group.group_rank,
            num_nodes=group.group_world_size,
            master_addr=group.master_addr,
            master_port=group.master_port,
            restarts=self._restarts(),
            max_restarts=job.launch.max_restarts,
            run_id=group.spec.rdzv_handler.get_run_id(),
            error_file=job.folder.rank_error(worker.global_rank, start=self._ledger.start),
        )
        streams, heartbeat_fd = self._streams[worker.local_rank], self._heartbeats.fd
        return rank_start(
            job, assignment, plan=self._plan, plan_path=self._plan_path, streams=streams, heartbeat_fd=heartbeat_fd
        )

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        exits = self._server.exits(timeout_s=_POLL_S, wake_fds=self._wake_fds())
        with suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        self._health.keep_server_running()
        self._note_exits(worker_group, exits)
        self._ledger.note_states(self._health.by_global_rank(self._health.states()))
        if self._signals:
            self._work_on_stop()
        elif any(end.code for end in self._ends):
            return self._failed(worker_group)
        elif hang := self._health.hang():
            return self._hung(hang)
        elif hang := self._health.hang_elsewhere():
            self._pump.notify(self._health.explain(hang, left=[]))
        if not self._server.running:
            return self._ended_well(worker_group)
        self._health.share()
        return RunResult(state=WorkerState.HEALTHY)

    def _ended_well(self, worker_group: WorkerGroup) -> RunResult:
        """No rank runs here, and none failed: the job is complete, was stopped, or goes on without this node's ranks.

        HEALTHY: another node may still need this one for a new round. Raises Stopped.
        """
        finished = self._handler.all_finished()
        if not finished and not (self._signals and self._stop_is_due()):
            return RunResult(state=WorkerState.HEALTHY)
        if self._signals or self._handler.stopped_by:
            if not (finished and has_finished_since(self._job.folder.result, self._result_at_start)):
                raise self._stopped()
            self._pump.notify(f"{self._stopper()} came when the last step was done: the run is complete")
        self._write_state("done", {})
        return RunResult(WorkerState.SUCCEEDED, return_values={w.global_rank: None for w in worker_group.workers})

    def _note_exits(self, worker_group: Any, exits: Sequence[Exit]) -> None:
        for ended in exits:
            worker = worker_group.workers[ended.local_rank]
            failed_at = self._heartbeats.state(ended.local_rank).failed_at
            self._ledger.note("ended", rank=worker.global_rank, at=ended.at, code=ended.code)
            self._ends.append(
                RankEnd(
                    rank=worker.global_rank,
                    local_rank=ended.local_rank,
                    node=worker_group.group_rank,
                    host=socket.gethostname(),
                    pid=ended.pid,
                    code=ended.code,
                    at=failed_at if failed_at and ended.code > 0 else ended.at,
                    log=self._job.folder.rank_log(worker.global_rank),
                )
            )

    def _failed(self, worker_group: WorkerGroup) -> RunResult:
        """Collect related failures, report the first, and let torch decide on a restart."""
        deadline = time.monotonic() + _SETTLE_S
        while (left := deadline - time.monotonic()) > 0 and self._server.running:
            self._note_exits(worker_group, self._server.exits(timeout_s=left))
        self._pump.drain()
        failed = [end for end in self._ends if end.code]
        struck = process.oom_kills() - self._oom_kills
        first = first_failed(failed)
        self.failed_code = first.code if first.code > 0 else 128 - first.code
        printed = self._pump.last_lines(first.local_rank, num_lines=LAST_LINES)
        self._give_up_or_restart(describe(self._ends, printed=printed, oom_kills=struck))
        failures = {end.rank: ProcessFailure(end.local_rank, end.pid, end.code, error_file="") for end in failed}
        return RunResult(state=WorkerState.FAILED, failures=failures)

    def _hung(self, hang: Hang) -> RunResult:
        """Report where every rank is, and treat the hang as a failure."""
        if isinstance(self._handler, PlanOrdered):
            self._handler.announce_hang()
            time.sleep(_ELSEWHERE_S)
        self._give_up_or_restart(self._health.explain(hang, left=[end.local_rank for end in self._ends]))
        return RunResult(state=WorkerState.FAILED)  # torch ends an UNHEALTHY group with exit code 0

    def _give_up_or_restart(self, message: str) -> None:
        """Report a failure and the next action; progress since the last start restores the restart budget."""
        launch = self._job.launch
        progress = self._newest_step() - self._step_at_start
        if progress >= launch.refill_steps:
            self._remaining_restarts = launch.max_restarts
        self._step_at_start = self._newest_step()
        left = self._remaining_restarts
        self._pump.notify(message + (f"\nstarting the ranks again; {left - 1} more restarts are left" if left else ""))
        self._ledger.note("failed", restarts_left=left)
        self._why = "" if left else message
        self._write_state("restarting" if left else "failed", {}, message)

    def _work_on_stop(self) -> None:
        """On the first signal, ask ranks to stop if they can, and end the others; on the second, end all."""
        if self._stop_deadline is None:
            came, launch, running = self._signals[0], self._job.launch, self._server.running
            self._handler.announce_stop(self._stopper())  # before a rank knows: its end is no completion any more
            self._heartbeats.request_stop()
            self._stop = ask_to_stop(running, self._health.states(), came, forward=launch.forward_signal)
            self._stop_deadline = time.monotonic() + (launch.grace_s if self._stop.asked else 0.0)
            self._write_state("stopping", running)
            if self._stop.asked:
                self._pump.notify(self._stop.describe(self._stopper(), grace_s=launch.grace_s))
        if self._stop_is_due():
            self._end_ranks()

    def _stop_is_due(self) -> bool:
        """Return whether the grace time is over; until then no node leaves before the others, which may still write."""
        asked = any(rank in self._server.running for rank in self._stop.asked)
        late = time.monotonic() >= (self._stop_deadline or 0.0)
        return is_urgent(self._signals) or late or (bool(self._server.running) and not asked)

    def _stopped(self) -> Stopped:
        step = self._newest_step()
        message = f"stopped by {self._stopper()}" + (f" after step {step}" if step else "")
        self._why = message
        self._write_state(self._stopped_state(), {}, message)
        return Stopped(message)

    def _stopped_early(self) -> Stopped:
        message = self._why = f"stopped by {self._stopper()} before the ranks ran"
        if self._ledger.node is not None:
            self._node = self._ledger.node
            self._write_state(self._stopped_state(), {}, message)
        return Stopped(message)

    def _stopper(self) -> str:
        """Return who asked for the stop."""
        if was_cancelled(self._job.folder):
            return "`launcher cancel`"
        return self._signals[0].name if self._signals else self._handler.stopped_by

    def _stopped_state(self) -> str:
        return "cancelled" if was_cancelled(self._job.folder) else "stopped"

    def _end_ranks(self) -> None:
        """Send TERM, and after launch.kill_after_s (or a second signal) KILL; return when no rank runs.

        Ranks that have failed as well get no TERM: they are still writing their output.
        """
        deadline = time.monotonic() + self._job.launch.kill_after_s
        states = self._health.states()
        self._server.signal(signal.SIGTERM, [rank for rank in self._server.running if not states[rank].failed_at])
        while self._server.running and not is_urgent(self._signals) and (left := deadline - time.monotonic()) > 0:
            self._server.exits(timeout_s=left, wake_fds=[self._wake_read])
        self._server.signal(signal.SIGKILL, tree=True)
        deadline = time.monotonic() + UNKILLABLE_S
        while self._server.running:
            self._health.keep_server_running()
            self._server.exits(timeout_s=1.0)
            if time.monotonic() > deadline:
                names = ", ".join(f"{pid} ({process.state(pid)})" for pid in self._server.running.values())
                raise LauncherError(f"ranks did not end after SIGKILL: processes {names}")

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._end_ranks()
        self._pump.drain()
        self._watching = False

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        self._end_ranks()
        self._pump.drain()

    def _newest_step(self) -> int:
        return max(state.step for state in self._health.states().values())

    def _wake_fds(self) -> list[int]:
        """Return descriptors that end a wait early: our own signals, and messages of the coordinator."""
        news = self._handler.fileno() if isinstance(self._handler, PlanOrdered) else -1
        return [self._wake_read, *([news] if news >= 0 else [])]

    def _write_state(self, state: str, pids: Mapping[int, int], message: str = "") -> None:
        now = NodeState(
            node=self._node,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=process.started_at(os.getpid()),
            state=state,
            starts=self._ledger.start,
            restarts_left=self._remaining_restarts,
            heartbeat_fd=self._heartbeats.fd,
            message=message,
            updated=in_utc(),
            ranks={self._first_rank + rank: pid for rank, pid in pids.items()},
        )
        try:
            now.write(self._job.folder)
        except OSError as error:
            if not self._state_is_lost:
                self._pump.notify(
                    f"{self._job.folder.node_state(self._node)} cannot be written ({error.strerror}): the job "
                    "goes on, but `launcher status` does not see its state"
                )
            self._state_is_lost = True
