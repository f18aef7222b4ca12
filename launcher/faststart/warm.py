"""A warm node: an idle fork server with torch imported, for one developer's repeated runs on one machine.

`launcher warm` starts it; `launcher warm stop` or an hour without a run stops it. Only its user can reach its socket.
A run sends its command line; the server forks, and the child plans and becomes the agent, with the command's streams,
folder and environment. A run is refused if a file that the server has imported, or a variable that was read at import,
has changed since; it then starts cold and prints a message. This is the command's side, which imports little before it
connects; the server's side is warm_server.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import env, process
from launcher.console import flush_streams, notify
from launcher.errors import LauncherError
from launcher.faststart.inherited import Inherited
from launcher.run.ledger import command_began

START_TIMEOUT_S = 120.0
LONGEST_SOCKET_PATH = 107  # sockaddr_un.sun_path without its last zero: unix(7)
ANSWER_TIMEOUT_S = 10.0
TITLE_ROOM = 1000  # characters: a rank's command line replaces the server's in `ps`, and can be no longer
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
    connection = connect()
    if connection is None:
        return None
    with connection:
        return peer(connection)[0]


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
        connection = connect()
    except LauncherError as error:
        notify(f"the warm server is not used: {error}; this start imports torch again")
        return None
    if connection is None:
        return None
    with connection:
        plain = {"environment": dict(run.environment), "inherited": run.inherited.to_dict()}
        message = json.dumps(run.__dict__ | plain).encode()
        flush_streams()
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


def connect() -> socket.socket | None:
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
    if peer(connection)[1] != os.getuid():
        connection.close()
        raise LauncherError(f"{path} is served by another user: remove it")
    return connection


def peer(connection: socket.socket) -> tuple[int, int]:
    """Return (pid, uid) of the peer, from the kernel."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid
