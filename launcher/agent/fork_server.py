"""The fork server: a small single-threaded process that starts ranks and reports how they ended.

The agent preloads torch, then forks the server before it opens any socket, thread or store; the server forks the
ranks. So torch is imported once per node, and a restarted rank starts in milliseconds. Those of the first start are
forked while the agent is still being imported, and wait for what they are to become. The agent and the server exchange
JSON lines over a socket pair. When the agent ends, for any reason, the server reads end-of-file and kills all
its descendants; when the server ends, the kernel kills the ranks (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from launcher import env, process
from launcher.agent import rank
from launcher.agent.fresh_process import freshen
from launcher.agent.group_ends import wait_for_threads_of_groups
from launcher.agent.main_module import command_line
from launcher.agent.torch_variables import hide_torch
from launcher.console import flush_streams
from launcher.errors import InputError, LauncherError
from launcher.garbage import no_garbage_collection

SERVER_FAILED = 70
THREADS_END_S = 1.0  # a thread that was joined is still the kernel's for a moment, on busy cores for longer


@dataclass(frozen=True)
class RankStart:
    """Everything needed to start one rank. `stdout` and `stderr` are inherited descriptors."""

    local_rank: int
    kind: str  # launcher.agent.rank: recipe, script, module
    program: str
    args: Sequence[str]
    variables: Mapping[str, str]
    stdout: int
    stderr: int
    command: Sequence[str] = ()  # to execute instead of the forked interpreter
    keeps_stdin: bool = False
    cores: Sequence[int] = ()  # affinity; empty: any core


RankOrder = tuple[RankStart, Mapping[str, str]]  # what a forked process becomes, and its whole environment


@dataclass(frozen=True)
class Exit:
    """The end of a rank's process: exit code, or minus the signal number; `at` is CLOCK_MONOTONIC."""

    local_rank: int
    pid: int
    code: int
    at: float


def preload(modules: Sequence[str]) -> None:
    """Import what every rank will import, without letting any library start threads.

    What is imported stays, so no collection looks through it again: the next one would take 0.06 s (torch 2.13).
    Raises InputError for a module that cannot be imported.
    """
    with env.overridden(env.SINGLE_THREADED), no_garbage_collection():
        for name in modules:
            try:
                import_module(name)
            except ImportError as error:
                remedy = "install it, or take it out of launch.preload and recipe.preload"
                if name.partition(".")[0] == "torch":  # which starts the ranks, of whatever program
                    remedy = "pip install 'nvlink-launcher[run]'"
                raise InputError(f"cannot preload {name} ({error}): {remedy}") from error
        gc.freeze()


def check_forkable() -> None:
    """Raise LauncherError if a fork would give the ranks broken state: threads, CUDA, process groups."""
    found = []
    if not process.has_one_thread(within_s=THREADS_END_S):  # of those that read what git said, before a warm start
        found.append(f"it has {process.num_threads()} threads")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found.append("CUDA is initialised")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        found.append("a process group is open")
    if found:
        raise LauncherError(
            f"cannot fork ranks from this process: {', '.join(found)}, and a forked rank could hang on them. "
            "Nothing may compute or start threads before the ranks start (a preloaded module does?): "
            "shorten launch.preload, or set launch.start=spawn"
        )


@dataclass
class ForkServer:
    """The agent's side of the server."""

    pid: int
    connection: socket.socket
    others: frozenset[int] = frozenset()  # descendants that existed before the server
    running: dict[int, int] = field(default_factory=dict)  # local rank → pid
    _buffer: bytes = b""

    @classmethod
    def start(cls, *, prepared: int = 0) -> ForkServer:
        """Fork the server from this process, which must be single-threaded; it forks `prepared` ranks at once."""
        ours, theirs = socket.socketpair()
        gc.freeze()  # exclude existing objects from collection, so that their pages stay shared with the ranks
        flush_streams()
        process.adopt_orphans()
        others = frozenset(process.descendants(os.getpid()))
        agent, pid = os.getpid(), os.fork()
        if pid == 0:
            _serve_and_exit(ours, theirs, agent=agent, prepared=prepared)
        theirs.close()
        return cls(pid, ours, others)

    def start_ranks(self, ranks: Sequence[RankStart]) -> dict[int, int]:
        """Start ranks with this process's environment plus their variables; return local rank → pid."""
        self._send({"op": "start", "environment": env.environment(), "ranks": [asdict(r) for r in ranks]})
        while not all(r.local_rank in self.running for r in ranks):
            message = self._receive(timeout_s=None)
            self.running = {int(key): pid for key, pid in message["started"].items()}
        return dict(self.running)

    def signal(self, number: int, local_ranks: Sequence[int] | None = None, *, tree: bool = False) -> None:
        """Signal the process groups of ranks (default: all); with `tree`, all descendants of the server."""
        if self.running:
            self._send({"op": "signal", "number": int(number), "ranks": local_ranks, "tree": tree})

    def exits(self, *, timeout_s: float, wake_fds: Sequence[int] = ()) -> list[Exit]:
        """Return ranks that ended since the last call; wait up to `timeout_s`, or until a descriptor is readable."""
        found: list[Exit] = []
        fds = [self.connection.fileno(), *wake_fds]
        ready = process.readable(fds, timeout_s=0 if b"\n" in self._buffer else timeout_s)
        while b"\n" in self._buffer or self.connection.fileno() in ready:
            message = self._receive(timeout_s=0)
            if "exit" in message:
                ended = Exit(**message["exit"])
                self.running.pop(ended.local_rank, None)
                found.append(ended)
            ready = process.readable([self.connection.fileno()], timeout_s=0)
        return found

    def close(self) -> None:
        """End the server and all its descendants."""
        self.connection.close()
        deadline = time.monotonic() + 10
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                process.signal_all([self.pid], signal.SIGKILL)
            time.sleep(0.002)
        process.kill_descendants(spare=self.others)

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self.connection.sendall((json.dumps(message) + "\n").encode())
        except OSError as error:
            raise LauncherError(f"the fork server (pid {self.pid}) has ended: {error}") from error

    def _receive(self, *, timeout_s: float | None) -> dict[str, Any]:
        self.connection.settimeout(timeout_s if timeout_s else None)
        while b"\n" not in self._buffer:
            data = self.connection.recv(65536)
            if not data:
                self.running.clear()
                raise LauncherError(
                    f"the fork server (pid {self.pid}) has ended, and its ranks with it: was it killed?"
                )
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if error := message.get("error"):
            raise LauncherError(f"the fork server failed: {error}")
        return message


def _serve_and_exit(agent_side: socket.socket, connection: socket.socket, *, agent: int, prepared: int) -> NoReturn:
    """Run the server in the forked process."""
    code = 0
    try:
        agent_side.close()
        os.setsid()  # a terminal's Ctrl-C reaches only the agent, which decides what to send to the ranks
        process.adopt_orphans()
        process.die_with_parent(agent, signal.SIGCONT)  # stopped, it would not see that the agent has ended
        server = _Server(connection)
        server.prepare(prepared)
        server.serve()
    except BaseException as error:
        code = SERVER_FAILED
        os.write(2, f"launcher: fork server: {error!r}\n".encode())
    finally:
        left = process.kill_descendants()
        if left:
            os.write(2, f"launcher: processes {left} could not be killed\n".encode())
        os._exit(code)


class _Server:
    """The server's loop: handles requests of the agent and ended children."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pids: dict[int, int] = {}  # pid → local rank
        self._prepared: list[tuple[int, socket.socket]] = []  # pid of a rank that waits, and the way to it
        self._buffer = b""
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Serve until the agent closes its end of the connection."""
        while True:
            ready = process.readable([self._connection.fileno(), self._wake], timeout_s=None)
            if self._wake in ready:
                os.read(self._wake, 4096)
            self._report_exits()
            if self._connection.fileno() in ready:
                try:
                    data = self._connection.recv(1 << 20)
                except ConnectionError:
                    return
                if not data:
                    return
                self._handle(data)

    def _handle(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["op"] == "start":
                self._start(message["environment"], [RankStart(**r) for r in message["ranks"]])
            else:
                self._signal(message["number"], message["ranks"], tree=message["tree"])

    def prepare(self, count: int) -> None:
        """Fork ranks before it is known what they run: a fork of all that torch has takes 10 ms (two cores)."""
        for _ in range(count):
            ours, theirs = socket.socketpair()
            pid = _forked(partial(_received, theirs))
            theirs.close()
            self._prepared.append((pid, ours))

    def _start(self, environment: Mapping[str, str], ranks: Sequence[RankStart]) -> None:
        for start in ranks:
            order = (start, {**environment, **start.variables})
            self._pids[self._take_prepared(order) or _forked(partial(_as_given, order))] = start.local_rank
        self._send({"started": {local_rank: pid for pid, local_rank in self._pids.items()}})

    def _take_prepared(self, order: RankOrder) -> int | None:
        """Send a rank that waits what it becomes, and return its pid; None if none is left."""
        start, variables = order
        while self._prepared:
            pid, connection = self._prepared.pop(0)
            with connection:
                try:
                    connection.sendall((json.dumps([asdict(start), variables]) + "\n").encode())
                except OSError:  # it was killed
                    continue
            return pid
        return None

    def _signal(self, number: int, local_ranks: Sequence[int] | None, *, tree: bool) -> None:
        for pid, local_rank in self._pids.items():
            if local_ranks is None or local_rank in local_ranks:
                _signal_group(pid, number)
        if tree:
            process.signal_all(process.descendants(os.getpid()), number)

    def _report_exits(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._pids:
                ended = Exit(self._pids.pop(pid), pid, os.waitstatus_to_exitcode(status), time.monotonic())
                self._send({"exit": asdict(ended)})

    def _send(self, message: Mapping[str, Any]) -> None:
        self._connection.sendall((json.dumps(message) + "\n").encode())


def _signal_group(pid: int, number: int) -> None:
    """Signal a rank, which is not reaped yet, and its process group, which may not exist yet."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        process.signal_all([pid], number)


def _forked(order: Callable[[], RankOrder]) -> int:
    """Fork a process that becomes a rank as ordered; return its pid."""
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_rank(order, parent=server)
    return pid


def _become_rank(order: Callable[[], RankOrder], *, parent: int) -> NoReturn:
    """In the forked child: set session, streams and environment as ordered, then run the program."""
    try:
        process.die_with_parent(parent)
        os.setsid()
        _reset_signals()  # before the order comes: from then on the agent may send some
        start, variables = order()
        _redirect(start)
        _bind(start.cores)
        env.replace(variables)
        if start.command:
            os.execvpe(start.command[0], list(start.command), dict(variables))
        freshen(command_line(start.program, start.args, as_module=start.kind == rank.MODULE))
        if start.kind != rank.RECIPE:
            wait_for_threads_of_groups()
            hide_torch()
        rank.run(start.kind, start.program, start.args)
    except BaseException as error:
        os.write(2, f"launcher: rank could not start: {error!r}\n".encode())
    finally:
        os._exit(SERVER_FAILED)


def _as_given(order: RankOrder) -> RankOrder:
    return order


def _received(connection: socket.socket) -> RankOrder:
    """Wait for the line that `_Server._take_prepared` sends."""
    start, variables = json.loads(connection.makefile("rb").readline())
    return RankStart(**start), variables


def _bind(cores: Sequence[int]) -> None:
    """Set the affinity to these cores; raises LauncherError if the kernel sets others."""
    if not cores:
        return
    os.sched_setaffinity(0, cores)
    if (found := os.sched_getaffinity(0)) != {*cores}:
        raise LauncherError(f"this rank should be bound to cores {sorted(cores)}, but has {sorted(found)}")


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # as the interpreter does at startup
        signal.signal(number, signal.SIG_IGN)


def _redirect(start: RankStart) -> None:
    """Redirect standard input (kept for one rank) and output; close all other descriptors."""
    if not start.keeps_stdin:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(start.stdout, 1)
    os.dup2(start.stderr, 2)
    heartbeat_fd = int(start.variables.get(env.HEARTBEAT_FD, -1))
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) > 2 and int(entry.name) != heartbeat_fd:
            _close(int(entry.name))


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:  # the descriptor of the listing itself, already closed
        return
