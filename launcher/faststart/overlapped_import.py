"""Overlapped import: this process imports torch while a child process plans.

The child composes, plans, creates the run folder and prints all messages, then sends the order as one line of JSON.
Meanwhile this process imports torch; it then becomes the agent, with the process id, terminal and exit code of the
command. If the child sends no order, the command ends at once with the child's exit code.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from launcher import process
from launcher.agent import fork_server
from launcher.agent.node import PRELOADED
from launcher.console import flush_streams, notify
from launcher.errors import LauncherError
from launcher.run.folder import RunFolder
from launcher.run.owner import Owner, release, was_cancelled
from launcher.schema import from_plain, to_plain

HANDED_OVER = 75  # the child's exit code when the job continues here
INTERRUPTED = 130


@dataclass(frozen=True)
class Order:
    """A run folder with everything that a start reads. `planned_at` is CLOCK_MONOTONIC."""

    run_folder: Path
    planned_at: float

    def to_json(self) -> str:
        return json.dumps(to_plain(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        return from_plain(cls, json.loads(text))


HandOver = Callable[[Order], int]


def plan_in_child(plan: Callable[[HandOver], int], owner: Owner) -> Order:
    """Run `plan` in a child while this process, `owner` of the run, imports torch; return the child's order.

    `plan` gets the function that sends the order and returns its value; otherwise it returns the command's exit code,
    and this process ends with that code. Raises InputError if torch cannot be imported.
    """
    read_fd, write_fd = os.pipe()
    flush_streams()
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
    """Run the child. Its parent handles signals, and the child ends with its parent."""
    code = 1
    try:
        process.die_with_parent(parent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with os.fdopen(fd, "w") as pipe:
            code = plan(lambda order: _hand_over(order, pipe))
        flush_streams()
    finally:
        os._exit(code)


def _hand_over(order: Order, pipe: IO[str]) -> int:
    pipe.write(order.to_json())
    return HANDED_OVER


@dataclass
class _Planner:
    """The planning child, seen from its parent. The parent has nothing buffered or open before the child has sent its
    order, so it may exit at any time, even during an import.
    """

    pid: int
    pipe: int
    owner: Owner
    received: bytes = b""

    def order(self) -> Order:
        """Wait for the child's order; end this process if the child ends without one."""
        while data := os.read(self.pipe, 65536):
            self.received += data
        self.end_unless_handed_over(flags=0)
        os.close(self.pipe)
        return Order.from_json(self.received.decode())

    @contextmanager
    def ending_this_process(self) -> Iterator[None]:
        """In the block, end this process as soon as the child ends without an order, or when it should stop."""
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
        """End this process with the child's exit code, if the child has ended without an order."""
        try:
            ended, status = os.waitpid(self.pid, flags)
        except ChildProcessError:  # already reaped after it sent its order
            return
        code = os.waitstatus_to_exitcode(status) if ended else HANDED_OVER
        if code < 0:
            notify(f"planning was ended by {signal.Signals(-code).name}")
        if code != HANDED_OVER:
            os._exit(1 if code < 0 else code)

    def stop(self, *_: object) -> None:
        """Handle Ctrl-C or a cancel: end the child and this process, and record it in the run folder, if any."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.set_blocking(self.pipe, False)
        with suppress(BlockingIOError):
            self.received += os.read(self.pipe, 65536)
        cancelled = False
        with suppress(ValueError, LauncherError):  # the child had not created it yet
            folder = RunFolder(Order.from_json(self.received.decode()).run_folder)
            cancelled = was_cancelled(folder)
            release(folder, self.owner, ended="interrupted")
        notify(f"{'stopped by `launcher cancel`' if cancelled else 'interrupted'} before the ranks ran")
        os._exit(1 if cancelled else INTERRUPTED)
