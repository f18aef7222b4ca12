"""The warm server: it imports, then forks for every run that the command's side (warm.py) sends."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from launcher import env, process
from launcher.agent import fork_server
from launcher.agent.node import PRELOADED
from launcher.agent.torch_variables import OPENBLAS_THREADS, THREADS, is_read_at_import
from launcher.console import flush_streams, notify
from launcher.faststart.inherited import Inherited
from launcher.faststart.warm import GO_COLD, WarmRun, peer, socket_path

# Our own modules that a run needs, imported in advance.
OWN_MODULES = ("launcher.agent.rank_agent", "launcher.rendezvous.single_node", "launcher.rendezvous.plan_ordered")
# Variables that the interpreter, loader and libraries read at startup; numbers of threads are set afterwards.
IMPORT_PREFIXES = ("PYTHON", "LD_", "LANG", "LC_", "TORCH", "PYTORCH", "DS_", "VIRTUAL_ENV", "CONDA_PREFIX", "MALLOC_",
                   "GLIBC_TUNABLES")  # fmt: skip
SET_LATER = {*THREADS, *OPENBLAS_THREADS}
MAX_MESSAGE_BYTES = 1 << 20

Work = Callable[[WarmRun], int]  # plans and runs in the forked child, returns the exit code


def serve(modules: Sequence[str], *, idle_s: float, work: Work) -> None:
    """Run the server: import, then fork for every run, which does `work`, until there was no run for `idle_s`."""
    variables = _import_variables(env.environment())  # before torch adds its own
    fork_server.preload((*PRELOADED, *modules))
    for name in OWN_MODULES:
        with env.overridden(env.SINGLE_THREADED):
            import_module(name)
    fork_server.check_forkable()
    gc.freeze()  # so that garbage collection in a run does not copy these pages
    path = socket_path()
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(16)
    _Server(listener, variables, idle_s, work).serve()
    path.unlink(missing_ok=True)


class _Server:
    def __init__(self, listener: socket.socket, variables: Mapping[str, str], idle_s: float, work: Work) -> None:
        self._listener, self._variables, self._idle_s, self._work = listener, variables, idle_s, work
        self._imported = _snapshot()
        self._runs: dict[int, socket.socket] = {}  # agent's pid → its command's connection
        self._ending = False
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def serve(self) -> None:
        while not self._ending:
            fds = [self._listener.fileno(), self._wake, *(c.fileno() for c in self._runs.values())]
            ready = process.readable(fds, timeout_s=None if self._runs else self._idle_s)
            if not ready:
                break
            with suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._reap()
            for pid, connection in list(self._runs.items()):
                if connection.fileno() in ready:  # the command sends nothing more: it was killed
                    process.signal_all([pid], signal.SIGKILL)
            if self._listener.fileno() in ready:
                self._accept()
        process.signal_all(self._runs, signal.SIGKILL)

    def _end(self, *_: object) -> None:
        self._ending = True

    def _reap(self) -> None:
        for pid in list(self._runs):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                with self._runs.pop(pid) as connection, suppress(OSError):
                    connection.sendall((json.dumps({"exit": code if code >= 0 else 1}) + "\n").encode())

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if peer(connection)[1] != os.getuid():
            connection.close()
            return
        connection.settimeout(5)
        try:
            request = _read_request(connection)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            request = None
        if request is None:  # a client only checked whether the server runs
            connection.close()
            return
        run, fds = request
        refusal = self._refusal(run)
        if refusal:
            connection.sendall((json.dumps({"refused": refusal}) + "\n").encode())
            connection.close()
        else:
            self._fork(run, fds, connection)
        for fd in fds:
            os.close(fd)

    def _refusal(self, run: WarmRun) -> str | None:
        """Return why this run must start cold, or None."""
        if run.prefix != sys.prefix:
            return f"it runs the Python of {sys.prefix}"
        own = Inherited.of_this_process().fixed
        if other := [name for name, value in run.inherited.fixed.items() if own.get(name) != value]:
            return f"its {', '.join(other)} differs"
        wanted = _import_variables(run.environment)
        if changed := sorted(n for n in {*wanted, *self._variables} if wanted.get(n) != self._variables.get(n)):
            return f"{', '.join(changed)} changed since it started"
        if changed_files := [name for name, mark in self._imported.items() if _mark(name) != mark]:
            self._ending = True
            return f"{changed_files[0]} changed since it was imported (the server ends; `launcher warm` starts another)"
        return None

    def _fork(self, run: WarmRun, fds: Sequence[int], connection: socket.socket) -> None:
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_agent(run, fds, server, self._work)
        connection.sendall((json.dumps({"pid": pid}) + "\n").encode())
        connection.setblocking(False)
        self._runs[pid] = connection


def _become_agent(run: WarmRun, fds: Sequence[int], server: int, work: Work) -> NoReturn:
    """In the forked child: adopt the command's streams, folder and environment, then run normally."""
    code = 1
    try:
        process.die_with_parent(server)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        os.closerange(3, 4096)
        os.chdir(run.directory)
        env.replace(run.environment)
        sys.path[:] = run.path
        code = work(run) if _takes_on(run.inherited) else GO_COLD
    except BaseException as error:
        notify(f"the warm start failed: {error!r}")
    finally:
        flush_streams()
        os._exit(code)


def _takes_on(inherited: Inherited) -> bool:
    """Return whether this process could adopt what its command's shell would have given it."""
    try:
        inherited.take_on()
    except (OSError, ValueError) as error:
        notify(f"the warm server is not used: it may not adopt the limits of this shell ({error})")
        return False
    return True


def _read_request(connection: socket.socket) -> tuple[WarmRun, list[int]] | None:
    head, fds, _, _ = socket.recv_fds(connection, 4, 3)
    if len(head) < 4 or len(fds) < 3:
        return None
    (size,) = struct.unpack("=I", head)
    if size > MAX_MESSAGE_BYTES:
        return None
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    fields = json.loads(data)
    sequences = {key: tuple(fields[key]) for key in ("overrides", "rest", "path")}
    return WarmRun(**{**fields, **sequences, "inherited": Inherited.from_dict(fields["inherited"])}), fds


def _snapshot() -> dict[str, tuple[int, int]]:
    """Return modification time and size of every imported file."""
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return {name: _mark(name) for name in files if name}


def _mark(name: str) -> tuple[int, int]:
    try:
        found = os.stat(name)  # noqa: PTH116 (thousands of files: a Path for each would double the time)
    except OSError:
        return (0, 0)
    return found.st_mtime_ns, found.st_size


def _import_variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(IMPORT_PREFIXES) or (is_read_at_import(name) and name not in SET_LATER)
    }
