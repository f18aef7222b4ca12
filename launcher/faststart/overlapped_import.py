"""Torch is imported while a child of this process plans: what comes before the ranks overlaps.

The child composes, plans, makes the run folder and says all that there is to say; what is to run it hands over as one
line of JSON. This process imports torch in that time, and becomes the agent: with the process id, the terminal and the
exit code of the command. Where the child has nothing to hand over, the command ends at once as the child did.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from launcher import process
from launcher.agent import fork_server
from launcher.agent.node import PRELOADED
from launcher.console import notify
from launcher.errors import LauncherError
from launcher.run.folder import RunFolder
from launcher.run.owner import Owner, release, was_cancelled
from launcher.schema import from_plain, to_plain

HANDED_OVER = 75  # the child's exit code when the job continues here
INTERRUPTED = 130


@dataclass(frozen=True)
class Order:
    """A run folder in which all is written that a start reads. `planned_at` is CLOCK_MONOTONIC."""

    run_folder: Path
    planned_at: float

    def to_json(self) -> str:
        return json.dumps(to_plain(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        return from_plain(cls, json.loads(text))


HandOver = Callable[[Order], int]


def possible() -> bool:
    """Whether this process may fork, and still has the import of torch before it."""
    return "torch" not in sys.modules and process.num_threads() == 1


def plan_in_child(plan: Callable[[HandOver], int], owner: Owner) -> Order:
    """Run `plan` in a child while this process, `owner` of the run, imports torch; returns what the child handed over.

    `plan` gets the function to hand over with, whose value it returns, or else the command's exit code: then this
    process ends with that code. Raises InputError where torch cannot be imported.
    """
    read_fd, write_fd = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    here = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(read_fd)
        _plan_and_exit(plan, write_fd, parent=here)
    os.close(write_fd)
    planner = _Planner(child, read_fd, owner)
    with planner.ending_this_process():
        fork_server.preload(PRELOADED)
        return planner.order()


def _plan_and_exit(plan: Callable[[HandOver], int], fd: int, *, parent: int) -> NoReturn:
    """The child's whole life. Signals are its parent's to answer, and it goes with its parent."""
    code = 1
    try:
        process.die_with_parent(parent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with os.fdopen(fd, "w") as pipe:
            code = plan(lambda order: _hand_over(order, pipe))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _hand_over(order: Order, pipe: IO[str]) -> int:
    pipe.write(order.to_json())
    return HANDED_OVER


@dataclass
class _Planner:
    """The child that plans, seen from this process. Nothing of this process's own is buffered or open before it has
    handed over, so that it may end without ceremony, also within an import.
    """

    pid: int
    pipe: int
    owner: Owner
    received: bytes = b""

    def order(self) -> Order:
        """What the child hands over, when it does; ends this process where it ends without."""
        while data := os.read(self.pipe, 65536):
            self.received += data
        self.end_unless_handed_over(flags=0)
        os.close(self.pipe)
        return Order.from_json(self.received.decode())

    @contextmanager
    def ending_this_process(self) -> Iterator[None]:
        """For a while, end this process as soon as the child has ended without an order, or when it is to stop."""
        handlers: dict[signal.Signals, Callable[..., None]] = {
            signal.SIGCHLD: lambda *_: self.end_unless_handed_over(flags=os.WNOHANG),
            signal.SIGINT: self.stop,
            signal.SIGTERM: self.stop,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            self.end_unless_handed_over(flags=os.WNOHANG)  # it may have ended before we listened
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end_unless_handed_over(self, *, flags: int) -> None:
        """End this process as the child did, where it did."""
        try:
            ended, status = os.waitpid(self.pid, flags)
        except ChildProcessError:  # waited for before, and found to have handed over
            return
        code = os.waitstatus_to_exitcode(status) if ended else HANDED_OVER
        if code < 0:
            notify(f"planning was ended by {signal.Signals(-code).name}")
        if code != HANDED_OVER:
            os._exit(1 if code < 0 else code)

    def stop(self, *_: object) -> None:
        """A Ctrl-C or a cancel: end the child and this process, and say so in the run folder where there is one."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.set_blocking(self.pipe, False)
        with suppress(BlockingIOError):
            self.received += os.read(self.pipe, 65536)
        cancelled = False
        with suppress(ValueError, LauncherError):  # the child had not come so far
            folder = RunFolder(Order.from_json(self.received.decode()).run_folder)
            cancelled = was_cancelled(folder)
            release(folder, self.owner, ended="interrupted")
        notify(f"{'stopped by `launcher cancel`' if cancelled else 'interrupted'} before the ranks ran")
        os._exit(1 if cancelled else INTERRUPTED)
