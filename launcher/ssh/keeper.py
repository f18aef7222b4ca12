"""What sshd starts on a host: `python -P -m launcher.ssh.keeper`. It keeps one agent, as long as its connection lives.

Its standard input brings one line of JSON (request.py), then a line for each order: `alive` from time to time,
`signal N` for the agent, `end`. When the input ends, or says nothing for too long, the connection is lost: then the
agent and everything below it is killed, so that nothing is left on a host that nobody can reach. When this process is
killed, the kernel kills the agent, and the agent's end is that of its ranks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from launcher import env, process
from launcher.console import notify
from launcher.errors import InputError, LauncherError
from launcher.files import write_text
from launcher.rendezvous.authentication import SECRET
from launcher.run.folder import create_run_folder
from launcher.ssh.request import COORDINATOR, RUN_ID, Hello, read_hello

LOST = 75  # the exit code where the agent did not end by itself: EX_TEMPFAIL of sysexits.h
AGENT = "launcher.ssh.node"
HELLO_S, POLL_S = 60.0, 0.1


class Orders:
    """Lines of the standard input, as they come."""

    def __init__(self, fd: int) -> None:
        self._fd, self._buffer = fd, b""
        self.ended = False
        self.heard_at = time.monotonic()

    def read(self, *, timeout_s: float) -> Iterator[bytes]:
        """The lines that come within a time."""
        if not self.ended and process.readable([self._fd], timeout_s=timeout_s):
            data = os.read(self._fd, 1 << 16)
            self.ended, self.heard_at = not data, time.monotonic()
            self._buffer += data
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            yield line


def keep(hello: Hello, orders: Orders) -> int:
    """Run the agent until it ends, or must; returns its exit code, or LOST."""
    agent = _start(hello)
    try:
        while (code := agent.poll()) is None:
            for line in orders.read(timeout_s=POLL_S):
                if line == b"end":
                    return LOST
                if line.startswith(b"signal "):
                    agent.send_signal(int(line.split()[1]))
            if orders.ended or time.monotonic() > orders.heard_at + hello.silent_s:
                notify(f"{hello.name} has lost its connection to the launcher: ending its ranks")
                return LOST
        return code if code >= 0 else LOST
    finally:
        agent.kill()
        agent.wait()
        process.kill_descendants()


def _start(hello: Hello) -> subprocess.Popen[bytes]:
    ours = {SECRET: hello.secret, COORDINATOR: hello.coordinator, RUN_ID: hello.run_id}
    process.adopt_orphans()
    return subprocess.Popen(
        [sys.executable, "-P", "-m", AGENT, hello.run_folder, str(hello.node), hello.name],
        stdin=subprocess.DEVNULL,
        env={**env.environment(), **hello.variables, **ours},
        cwd=hello.work_dir,
        preexec_fn=partial(process.die_with_parent, os.getpid(), signal.SIGKILL),
    )


def place_files(hello: Hello) -> None:
    """The run folder with its plan, where it is not the launcher's own by a shared file system.

    Raises InputError where it cannot be written, or where there is no folder to work in.
    """
    if not Path(hello.work_dir).is_dir():
        raise InputError(
            f"{hello.name} has no folder {hello.work_dir}, which the job works in: start where all hosts have it"
        )
    try:
        folder = create_run_folder(Path(hello.run_folder))
        for name, text in hello.files.items():
            file = folder.path / name
            if not file.is_file() or file.read_text(encoding="utf-8") != text:
                write_text(file, text)
    except OSError as error:
        raise InputError(f"{hello.name} cannot write the run folder {hello.run_folder} ({error.strerror})") from error


def main() -> int:
    orders = Orders(0)
    try:
        deadline = time.monotonic() + HELLO_S
        while time.monotonic() < deadline and not orders.ended:
            for line in orders.read(timeout_s=1.0):
                hello = read_hello(line)
                place_files(hello)
                return keep(hello, orders)
        raise LauncherError("nobody said what to run: `launcher run launch=ssh` starts this")
    except LauncherError as error:
        notify(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
