"""A warm node: an idle fork server with torch imported, for one developer's repeated runs on one machine.

`launcher warm` starts it; `launcher warm stop` or an hour without a run stops it. Only its user can reach its socket.
A run sends its command line; the server forks, and the child plans and becomes the agent, with the command's streams,
folder and environment. A run is refused if a file that the server has imported, or a variable that was read at import,
has changed since; it then starts cold and prints a message.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from launcher import env, process
from launcher.agent import fork_server
from launcher.agent.node import PRELOADED
from launcher.agent.torch_variables import OPENBLAS_THREADS, THREADS, is_read_at_import
from launcher.console import notify
from launcher.errors import LauncherError
from launcher.faststart.inherited import Inherited
from launcher.run.ledger import command_began

# Our own modules that a run needs, imported in advance.
OWN_MODULES = ("launcher.agent.rank_agent", "launcher.rendezvous.single_node", "launcher.rendezvous.plan_ordered")
# Variables that the interpreter, loader and libraries read at startup; numbers of threads are set afterwards.
IMPORT_PREFIXES = ("PYTHON", "LD_", "LANG", "LC_", "TORCH", "PYTORCH", "DS_", "VIRTUAL_ENV", "CONDA_PREFIX", "MALLOC_",
                   "GLIBC_TUNABLES")  # fmt: skip
SET_LATER = {*THREADS, *OPENBLAS_THREADS}
START_TIMEOUT_S = 120.0
LONGEST_SOCKET_PATH = 107  # sockaddr_un.sun_path without its last zero: unix(7)
ANSWER_TIMEOUT_S = 10.0
TITLE_ROOM = 1000  # characters: a rank's command line replaces the server's in `ps`, and can be no longer
MAX_MESSAGE_BYTES = 1 << 20
GO_COLD = 76  # the exit code of a run that must not be warm by its configuration
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True)
class WarmRun:
    """A command line sent to the warm server. `began`: when the user entered it (CLOCK_MONOTONIC)."""

    overrides: tuple[str, ...]
    rest: tuple[str, ...]
    directory: str
    environment: Mapping[str, str]
    prefix: str  # which Python this is: the folder of its (virtual) environment
    path: tuple[str, ...]
    inherited: Inherited
    began: float

    @classmethod
    def of_this_process(cls, overrides: Sequence[str], rest: Sequence[str]) -> WarmRun:
        return cls(
            overrides=tuple(overrides),
            rest=tuple(rest),
            directory=str(Path.cwd()),
            environment=env.environment(),
            prefix=sys.prefix,
            path=tuple(sys.path if sys.flags.safe_path else sys.path[1:]),  # without the entry of the command itself
            inherited=Inherited.of_this_process(),
            began=command_began(),
        )


Work = Callable[[WarmRun], int]  # plans and runs in the forked child, returns the exit code


def socket_path() -> Path:
    """Return the socket of this user's server, in a private folder; raises LauncherError if there is none."""
    base = env.get("XDG_RUNTIME_DIR") or "/tmp"
    folder = Path(base) / f"nvlink-launcher-{os.getuid()}"
    path = folder / "warm.sock"
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise LauncherError(f"{path} is too long for the name of a socket: set XDG_RUNTIME_DIR to a shorter one")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        way_out = "set XDG_RUNTIME_DIR to a folder of yours, or unset it"
        raise LauncherError(f"{folder} cannot be made ({error.strerror}): {way_out}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise LauncherError(f"{folder} is not a private folder of yours: remove it, or set XDG_RUNTIME_DIR")
    return path


def may_listen() -> bool:
    """Return whether this user's server may exist; report a folder that is unsafe for its socket."""
    try:
        return socket_path().exists()
    except (LauncherError, OSError) as error:
        notify(f"the warm server is not used, so this start imports torch: {error}")
        return False


def start(program: str, modules: Sequence[str], *, idle_s: float) -> int:
    """Start this user's server with these modules imported, replacing a running one; return its process id.

    `program` is the module that calls `serve` with the arguments IDLE_S MODULE … and an empty last one.
    """
    stop()
    path = socket_path()
    room = " " * TITLE_ROOM
    command = [sys.executable, "-P", "-m", program, str(idle_s), *modules, room]
    with path.with_suffix(".log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while (pid := running()) is None:
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            words = path.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip()[-2000:]
            raise LauncherError(f"the warm server did not start: {words}")
        time.sleep(0.02)
    return pid


def running() -> int | None:
    """Return the process id of this user's server, if it answers."""
    connection = _connect()
    if connection is None:
        return None
    with connection:
        return _peer(connection)[0]


def stop() -> int | None:
    """Stop this user's server; return its process id, None if none was running."""
    pid = running()
    if pid is None:
        return None
    process.signal_all([pid], signal.SIGTERM)
    deadline = time.monotonic() + 10
    while process.state(pid) not in (None, "Z"):
        if time.monotonic() > deadline:
            process.signal_all([pid], signal.SIGKILL)
        time.sleep(0.01)
    return pid


def run_warm(run: WarmRun) -> int | None:
    """Run through the server and return the exit code; None if the run must start cold: there is no server, or it
    refuses (which is reported), or the run's configuration does not want it.
    """
    try:
        connection = _connect()
    except LauncherError as error:
        notify(f"the warm server is not used: {error}; this start imports torch again")
        return None
    if connection is None:
        return None
    with connection:
        plain = {"environment": dict(run.environment), "inherited": run.inherited.to_dict()}
        message = json.dumps(run.__dict__ | plain).encode()
        sys.stdout.flush()
        sys.stderr.flush()
        connection.settimeout(ANSWER_TIMEOUT_S)
        answers = connection.makefile("r", encoding="utf-8")
        try:
            socket.send_fds(connection, [struct.pack("=I", len(message))], [0, 1, 2])
            connection.sendall(message)
            first = json.loads(answers.readline() or '{"refused": "it ended"}')
        except (OSError, ValueError) as error:
            first = {"refused": f"it does not answer ({error})"}
        connection.settimeout(None)
        if "refused" in first:
            notify(f"the warm server is not used: {first['refused']}; this start imports torch again")
            return None
        for number in (n for n in FORWARDED if signal.getsignal(n) is not signal.SIG_IGN):  # as under nohup
            signal.signal(number, lambda number, _: process.signal_all([first["pid"]], number))
        last = answers.readline()
        if not last:
            raise LauncherError("the warm server ended, and the run with it")
        code: int = json.loads(last)["exit"]
        return None if code == GO_COLD else code


def serve(modules: Sequence[str], *, idle_s: float, work: Work) -> None:
    """Run the server: import, then fork for every run, which does `work`, until there was no run for `idle_s`."""
    variables = _import_variables(env.environment())  # before torch adds its own
    fork_server.preload((*PRELOADED, *modules))
    for name in OWN_MODULES:
        with env.overridden(fork_server.SINGLE_THREADED):
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
        if _peer(connection)[1] != os.getuid():
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
        sys.stdout.flush()
        os._exit(code)


def _takes_on(inherited: Inherited) -> bool:
    """Return whether this process could adopt what its command's shell would have given it."""
    try:
        inherited.take_on()
    except (OSError, ValueError) as error:
        notify(f"the warm server is not used: it may not adopt the limits of this shell ({error})")
        return False
    return True


def _connect() -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = socket_path()
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise LauncherError(f"{path} does not answer ({error.strerror}): remove it") from error
    if _peer(connection)[1] != os.getuid():
        connection.close()
        raise LauncherError(f"{path} is served by another user: remove it")
    return connection


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Return (pid, uid) of the peer, from the kernel."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


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
