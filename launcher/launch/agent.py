"""The agent of one node: torch's elastic agent, with ranks that come from our fork server.

`SimpleElasticAgent` is torch's extension point for other ways to start workers; its abstract methods begin with an
underscore and are the documented ones to implement. Beyond them this file touches only `_remaining_restarts`.
Tested with torch 2.13.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from torch.distributed.elastic.rendezvous import RendezvousHandler

from launcher import env
from launcher.board import Board
from launcher.errors import JobFailed
from launcher.launch import process, rank_env
from launcher.launch.failure import LOG_HEADER, RankEnd, describe, first_failed
from launcher.launch.fork_server import Exit, ForkServer, RankStart
from launcher.launch.output import Pump, Stream
from launcher.launch.rank_env import Seat
from launcher.launch.run_folder import RunFolder, utc_now
from launcher.launch.settings import LaunchSettings
from launcher.plan import Plan

_SETTLE_S = 0.2  # how long after a rank's failure the failures that caused it, or that it caused, are gathered
_POLL_S = 0.25


class Stopped(JobFailed):
    """The job was asked to stop, and did."""


@dataclass(frozen=True)
class NodeJob:
    """What an agent runs on its node."""

    plan: Plan
    folder: RunFolder
    script: Path
    args: Sequence[str]
    launch: LaunchSettings
    node: int
    num_ranks: int
    num_threads: int


class RankAgent(SimpleElasticAgent):
    """Starts, watches, restarts and ends the ranks of one node."""

    def __init__(
        self,
        job: NodeJob,
        *,
        handler: RendezvousHandler,
        server: ForkServer,
        board: Board,
        pump: Pump,
        streams: dict[int, tuple[Stream, Stream]],
        tell: Callable[[str], None],
    ) -> None:
        spec = WorkerSpec(
            role="default",
            local_world_size=job.num_ranks,
            rdzv_handler=handler,
            entrypoint=str(job.script),
            max_restarts=job.launch.max_restarts,
            monitor_interval=0.001,  # the waiting is in _monitor_workers, which wakes when something happens
        )
        super().__init__(spec, exit_barrier_timeout=300)
        self._job, self._server, self._board, self._pump, self._streams = job, server, board, pump, streams
        self._tell = tell
        self._ends: list[RankEnd] = []
        self._oom_kills = process.oom_kills()
        self._signals: list[signal.Signals] = []
        self._stop_deadline: float | None = None
        self._watching = False
        self._starts = 0
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def handle_signals(self) -> None:
        """Take over the signals that ask for a stop; call once, in the main thread."""
        for number in {*self._job.launch.stop_signals, signal.SIGINT, signal.SIGTERM}:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signals.append(signal.Signals(number))
        if not self._watching and len(self._signals) == 1:
            raise Stopped(f"stopped by {self._signals[0].name} before the ranks ran")
        os.write(self._wake_write, b"x")

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._ends.clear()
        self._starts += 1
        ranks = [self._rank_start(worker_group, worker) for worker in worker_group.workers]
        for worker in worker_group.workers:
            self._board.clear(worker.local_rank)
        pids = self._server.start_ranks(ranks)
        self._watching = True
        return pids

    def _rank_start(self, group: Any, worker: Any) -> RankStart:
        job = self._job
        seat = Seat(
            rank=worker.global_rank,
            world_size=worker.world_size,
            local_rank=worker.local_rank,
            local_world_size=job.num_ranks,
            node=group.group_rank,
            num_nodes=group.group_world_size,
            master_addr=group.master_addr,
            master_port=group.master_port,
            restarts=job.launch.max_restarts - self._remaining_restarts,
            max_restarts=job.launch.max_restarts,
            run_id=group.spec.rdzv_handler.get_run_id(),
        )
        defaults = rank_env.defaults(
            env.environment(), num_threads=job.num_threads, single_node=group.group_world_size == 1
        )
        stdout, stderr = self._streams.get(worker.local_rank, (None, None))
        return RankStart(
            local_rank=seat.local_rank,
            script=str(job.script),
            args=tuple(job.args),
            variables={
                **defaults,
                **rank_env.torchrun_variables(seat),
                **rank_env.plan_variables(job.plan, rank=seat.rank, run_folder=job.folder.path),
                "LAUNCHER_BOARD_FD": str(self._board.fd),
            },
            log=str(job.folder.rank_log(seat.rank)),
            header=f"{LOG_HEADER}rank {seat.rank} of {seat.world_size}, start {self._starts}, {utc_now()}",
            stdout=stdout.write_fd if stdout else -1,
            stderr=stderr.write_fd if stderr else -1,
            exec_python=job.launch.start == "spawn",
            num_threads=int(env.get("OMP_NUM_THREADS") or job.num_threads),
        )

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        exits = self._server.exits(timeout_s=_POLL_S, wake_fd=self._wake_read)
        self._note(worker_group, exits)
        if any(end.code for end in self._ends) and not self._signals:
            return self._failed(worker_group)
        if self._signals:
            self._work_on_stop()
        if not self._server.running:
            if self._signals:
                raise self._stopped()
            return RunResult(
                state=WorkerState.SUCCEEDED, return_values={w.global_rank: None for w in worker_group.workers}
            )
        return RunResult(state=WorkerState.HEALTHY)

    def _note(self, worker_group: Any, exits: Sequence[Exit]) -> None:
        for ended in exits:
            worker = worker_group.workers[ended.local_rank]
            failed_at = self._board.state(ended.local_rank).failed_at
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
        """Gather what failed together, say who was first, and let torch decide on a restart."""
        deadline = time.monotonic() + _SETTLE_S
        while (left := deadline - time.monotonic()) > 0 and self._server.running:
            self._note(worker_group, self._server.exits(timeout_s=left))
        self._pump.drain()
        failed = [end for end in self._ends if end.code]
        struck = process.oom_kills() - self._oom_kills
        self._tell(describe(first_failed(failed), others=len(failed) - 1, oom_kills=struck))
        failures = {end.rank: ProcessFailure(end.local_rank, end.pid, end.code, error_file="") for end in failed}
        return RunResult(state=WorkerState.FAILED, failures=failures)

    def _work_on_stop(self) -> None:
        """The first signal asks ranks that heed it to stop at a step's end and ends the others; a second ends all."""
        now = time.monotonic()
        heeded = all(self._board.state(local_rank).heeds_stop for local_rank in self._server.running)
        if self._stop_deadline is None:
            self._board.request_stop()
            self._stop_deadline = now + (self._job.launch.grace_s if heeded else 0.0)
            if heeded and self._server.running:
                self._tell(
                    f"{self._signals[0].name}: stopping at the end of this step, "
                    f"within {self._job.launch.grace_s:g} s; a second signal stops at once"
                )
        if len(self._signals) > 1 or now >= self._stop_deadline:
            self._end_ranks(at_once=len(self._signals) > 1)

    def _stopped(self) -> Stopped:
        steps = [self._board.state(r).step for r in range(self._job.num_ranks)]
        where = f" after step {max(steps)}" if any(steps) else ""
        return Stopped(f"stopped by {self._signals[0].name}{where}")

    def _end_ranks(self, *, at_once: bool = False) -> None:
        """TERM, and after launch.kill_after_s KILL; returns when no rank runs."""
        if self._server.running and not at_once:
            self._server.signal(signal.SIGTERM)
            deadline = time.monotonic() + self._job.launch.kill_after_s
            while self._server.running and (left := deadline - time.monotonic()) > 0 and len(self._signals) < 2:
                self._server.exits(timeout_s=left, wake_fd=self._wake_read)
        self._server.signal(signal.SIGKILL, tree=True)
        while self._server.running:
            self._server.exits(timeout_s=1.0)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._end_ranks()
        self._pump.drain()
        self._watching = False

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        self._end_ranks()
        self._pump.drain()
