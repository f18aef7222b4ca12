"""Waiting for a step: Slurm's signals are passed on to it, and a dead node does not keep it waiting."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from launcher.run.folder import RunFolder
from launcher.run.node_state import states_in_words
from launcher.slurm.allocation import lost_nodes, removed_nodes

SRUN_LISTENS_S = 3.0  # srun dies of a signal that comes before it has set up its handlers
POLL_S = 0.5
SETTLE_S = 5.0  # after one agent has failed, the others end by themselves within so long
ASK_EVERY_S = 15.0  # one question to slurmctld
STOP_S = 10.0  # how long srun may take to end its tasks


@dataclass
class Signals:
    """Slurm's signals to the batch script, counted by their handlers and passed on by the driver."""

    name: str
    stop: int = 0  # before the time limit, at preemption
    terminate: int = 0  # scancel, scontrol requeue, preemption without a grace time: Slurm tells the steps itself
    in_step: bool = False  # there are agents, or there will be in a moment

    @property
    def number(self) -> signal.Signals:
        """The stop signal."""
        return signal.Signals[f"SIG{self.name}"]

    def listen(self) -> None:
        """Take over the stop signal and TERM."""
        signal.signal(self.number, self._on_stop)
        signal.signal(signal.SIGTERM, self._on_terminate)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop += 1

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminate += 1


@dataclass
class StepWatch:
    """One step of agents, watched until srun ends.

    srun waits for the tasks of a dead node until Slurm ends the job for it, and where the job has spares (sbatch
    --no-kill) beyond that. So the nodes are asked, once an agent has failed; and for a job with spares Slurm is asked
    from time to time, for a node that goes silent fails no agent.
    """

    process: subprocess.Popen[bytes]
    signals: Signals
    folder: RunFolder
    hosts: Sequence[str]
    notify: Callable[[str], None]
    spared_job: str | None  # the job's id where it has spares
    _passed_on: int = 0
    _failed_at: float | None = None
    _asked_at: float = field(default_factory=time.monotonic)
    _listens_at: float = field(default_factory=lambda: time.monotonic() + SRUN_LISTENS_S)

    def wait(self) -> int:
        """The exit code of srun."""
        while True:
            try:
                return self.process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                self._pass_signals_on()
                self._end_for_lost_nodes()

    def _pass_signals_on(self) -> None:
        if self.signals.stop > self._passed_on and time.monotonic() > self._listens_at:
            self._passed_on = self.signals.stop
            self.notify(f"SIG{self.signals.name}: asking the ranks to write a checkpoint and stop")
            self.process.send_signal(self.signals.number)

    def _end_for_lost_nodes(self) -> None:
        if lost := self._lost_nodes(time.monotonic()):
            self.notify(f"ending the step, which {', '.join(lost)} cannot end any more")
            end(self.process)

    def _lost_nodes(self, now: float) -> Sequence[str]:
        if self._failed_at is None and "failed" in states_in_words(self.folder, num_nodes=len(self.hosts)):
            self._failed_at = now
        if self._failed_at is not None and now > self._failed_at + SETTLE_S:
            self._failed_at = now  # looked at again as long as srun does not end
            return lost_nodes(self.hosts)
        if self.spared_job and now > self._asked_at + ASK_EVERY_S:
            self._asked_at = now
            return removed_nodes(self.spared_job, self.hosts)
        return ()


@contextmanager
def ended_on_error(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A step does not outlive the one who waits for it."""
    try:
        yield
    except BaseException:
        end(process)
        raise


def end(process: subprocess.Popen[bytes]) -> None:
    """End srun and with it its step: TERM, which it passes on to its tasks, then KILL."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
