"""Waits for a step: forwards Slurm's signals to it, and does not wait for dead nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread
from types import FrameType

from launcher.agent.sink import OutputSink, TerminalTarget
from launcher.run.folder import RunFolder
from launcher.run.node_state import states_in_words
from launcher.slurm.allocation import lost_nodes, removed_nodes
from launcher.slurm.unstarted import in_words, unstarted

SRUN_LISTENS_S = 3.0  # a signal before srun has set up its handlers would kill it
START_S = 60.0  # agents that have not started their ranks within this time are signalled nevertheless
POLL_S = 0.5
SETTLE_S = 5.0  # after one agent has failed, the others end within this time
ENDED = {"failed", "stopped"}  # Slurm stops the agents that are left in an allocation that has lost a node
ASK_EVERY_S = 15.0  # interval of requests to slurmctld
STOP_S = 10.0  # time for srun to end its tasks
STANDARD_ERROR = 2
READ_BYTES = 65_536
MOST_HEARD_BYTES = 65_536  # what could not start is among the first things that a step says
READ_ON_S = 5.0  # a grandchild of srun may keep its output open


@dataclass
class Signals:
    """Slurm's signals to the batch script, counted by their handlers and forwarded by the driver."""

    name: str
    stop: int = 0  # before the time limit, at preemption
    # scancel, scontrol requeue, preemption without a grace time: Slurm signals the steps that exist by then itself.
    terminate: int = 0
    in_step: bool = False  # agents exist or will soon

    @property
    def number(self) -> signal.Signals:
        """The stop signal."""
        return signal.Signals[f"SIG{self.name}"]

    def listen(self) -> None:
        """Handle the stop signal and TERM."""
        signal.signal(self.number, self._on_stop)
        signal.signal(signal.SIGTERM, self._on_terminate)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop += 1

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminate += 1


class StepErrors:
    """Passes the standard error of a step on to ours, and keeps its beginning. What cannot be written stops nothing."""

    def __init__(self, step: subprocess.Popen[bytes]) -> None:
        self._stream, self._heard = step.stderr, bytearray()
        self._sink, self._target = OutputSink(on_fault=lambda *_: None), TerminalTarget(STANDARD_ERROR)
        self._thread = Thread(target=self._run, name="errors of the step", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        if self._stream is None:
            return
        with self._stream:
            while data := os.read(self._stream.fileno(), READ_BYTES):
                self._heard += data[: max(0, MOST_HEARD_BYTES - len(self._heard))]
                self._sink.put(self._target, data)

    def unstarted(self) -> dict[str, str]:
        """Map the hosts that could not start their task to the reason."""
        return unstarted(bytes(self._heard).decode(errors="replace").splitlines())

    def close(self) -> None:
        """Pass on what is left, once the step has ended."""
        self._thread.join(READ_ON_S)
        self._sink.close()


@dataclass
class StepWatch:
    """One step of agents, watched until srun ends.

    srun waits for the tasks of a dead node until Slurm ends the job, and with spares (sbatch --no-kill) even longer. So
    the nodes are checked once an agent has failed or was stopped; for a job with spares Slurm is asked periodically,
    because a silent node does not make an agent fail.
    """

    process: subprocess.Popen[bytes]
    signals: Signals
    folder: RunFolder
    hosts: Sequence[str]
    notify: Callable[[str], None]
    spared_job: str | None  # the job's id if it has spares
    errors: StepErrors = field(init=False)
    _passed_on: int = 0
    _failed_at: float | None = None
    _too_early: bool = False
    _asked_at: float = field(default_factory=time.monotonic)
    _listens_at: float = field(default_factory=lambda: time.monotonic() + SRUN_LISTENS_S)

    def __post_init__(self) -> None:
        self.errors = StepErrors(self.process)

    def wait(self) -> int:
        """Wait for srun and return its exit code."""
        try:
            while True:
                try:
                    return self.process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    self._pass_signals_on()
                    self._end_where_slurm_did_not()
                    self._end_for_lost_nodes()
        finally:
            self.errors.close()

    def _pass_signals_on(self) -> None:
        """Pass a stop signal on when every agent handles it: it would kill one that still starts."""
        if self.signals.stop > self._passed_on and self._listen(time.monotonic()):
            self._passed_on = self.signals.stop
            self.notify(f"SIG{self.signals.name}: asking the ranks to write a checkpoint and stop")
            self.process.send_signal(self.signals.number)

    def _end_where_slurm_did_not(self) -> None:
        """End a step if TERM came while it started: Slurm may not have known it yet."""
        early = time.monotonic() < self._listens_at
        self._too_early |= early and self.signals.terminate > 0
        if self._too_early and not early:
            self.notify("ending the step: Slurm ends the job, which has just started")
            end(self.process)

    def _listen(self, now: float) -> bool:
        if now < self._listens_at:
            return False
        urgent = self.signals.stop > 1 or now > self._listens_at + START_S
        return urgent or len(self.folder.node_states()) >= len(self.hosts)

    def _end_for_lost_nodes(self) -> None:
        if lost := self._lost_nodes(time.monotonic()):
            self.notify(f"ending the step, since {', '.join(lost)} can no longer end it")
            end(self.process)
        elif failed := self.errors.unstarted():
            self.notify(f"ending the step: {in_words(failed)}")
            end(self.process)

    def _lost_nodes(self, now: float) -> Sequence[str]:
        if self._failed_at is None and ENDED & set(states_in_words(self.folder, num_nodes=len(self.hosts))):
            self._failed_at = now
        if self._failed_at is not None and now > self._failed_at + SETTLE_S:
            self._failed_at = now  # checked again as long as srun does not end
            return lost_nodes(self.hosts)
        if self.spared_job and now > self._asked_at + ASK_EVERY_S:
            self._asked_at = now
            return removed_nodes(self.spared_job, self.hosts)
        return ()


@contextmanager
def ended_on_error(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the step if the block fails."""
    try:
        yield
    except BaseException:
        end(process)
        raise


def wait(process: subprocess.Popen[bytes], limit_s: float, *, ended: Callable[[], bool]) -> int | None:
    """Return the exit code of a step; None after it was ended: at its time limit, or once `ended` says so."""
    until = time.monotonic() + limit_s
    with ended_on_error(process):
        while time.monotonic() < until and not ended():
            with suppress(subprocess.TimeoutExpired):
                return process.wait(POLL_S)
    end(process)
    return None


def end(process: subprocess.Popen[bytes]) -> None:
    """End srun and its step: TERM, which it forwards to its tasks, then KILL."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
