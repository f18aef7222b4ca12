"""Torch is imported while a child of this process plans: what comes before the ranks overlaps.

The child composes, plans, makes the run folder and says all that there is to say; what is to run it hands over as one
line of JSON. This process imports meanwhile, and is the one that becomes the agent: with the process id, the terminal
and the exit code of the command. Where the child has nothing to hand over, the command ends at once as the child did.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from launcher import process
from launcher.agent import fork_server
from launcher.agent.node import PRELOADED
from launcher.agent.settings import LaunchSettings
from launcher.console import tell
from launcher.schema import from_plain, to_plain

HANDED_OVER = 75  # the child's exit code when the job goes on here
INTERRUPTED = 130


@dataclass(frozen=True)
class Order:
    """What is to run: a run folder with its plan.json, a script with arguments. `planned_at` is CLOCK_MONOTONIC."""

    run_folder: Path
    script: Path
    args: tuple[str, ...]
    launch: LaunchSettings
    planned_at: float

    def to_json(self) -> str:
        paths = {"run_folder": str(self.run_folder), "script": str(self.script)}
        return json.dumps({**paths, "args": self.args, "launch": to_plain(self.launch), "planned_at": self.planned_at})

    @classmethod
    def from_json(cls, text: str) -> Order:
        data = json.loads(text)
        launch = from_plain(LaunchSettings, data["launch"], "launch")
        return cls(Path(data["run_folder"]), Path(data["script"]), tuple(data["args"]), launch, data["planned_at"])


HandOver = Callable[[Order], int]


def possible() -> bool:
    """Whether this process may fork, and still has the import of torch before it."""
    return "torch" not in sys.modules and process.num_threads() == 1


def planned_meanwhile(plan: Callable[[HandOver], int]) -> Order:
    """Run `plan` in a child while this process imports torch; returns what the child handed over.

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
    with _ending_with(child), os.fdopen(read_fd) as pipe:
        fork_server.preload(PRELOADED)
        told = pipe.read()
    _end_unless_handed_over(child, flags=0)
    return Order.from_json(told)


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


@contextmanager
def _ending_with(child: int) -> Iterator[None]:
    """Meanwhile, end this process as soon as the child has ended without an order, or at a Ctrl-C."""
    before = {
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: _end_unless_handed_over(child, flags=os.WNOHANG)),
        signal.SIGINT: signal.signal(signal.SIGINT, _interrupted),
    }
    try:
        _end_unless_handed_over(child, flags=os.WNOHANG)  # it may have ended before we listened
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_unless_handed_over(child: int, *, flags: int) -> None:
    """Nothing of this process's own is buffered or open yet, so it may end without ceremony, also within an import."""
    try:
        ended, status = os.waitpid(child, flags)
    except ChildProcessError:  # waited for before, and found to have handed over
        return
    code = os.waitstatus_to_exitcode(status) if ended else HANDED_OVER
    if code < 0:
        tell(f"planning was ended by {signal.Signals(-code).name}")
    if code != HANDED_OVER:
        os._exit(1 if code < 0 else code)


def _interrupted(*_: object) -> NoReturn:
    tell("interrupted")
    os._exit(INTERRUPTED)
