"""What sshd starts on a host: `python -P -m launcher.ssh.keeper`. It keeps one agent, as long as its connection lives.

Its standard input brings one line of JSON (request.py), the packed code if the host has said by its exit code that it
needs it, then a line for each order: `alive` from time to time, `signal N` for the agent, `end`. When the input ends,
or says nothing for too long, the connection is lost: then the agent and everything below it is killed, so that nothing
is left on a host that nobody can reach. When this process is killed, the kernel kills the agent, and the agent's end is
that of its ranks.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from launcher import env, process
from launcher.console import notify
from launcher.errors import InputError, LauncherError
from launcher.files import write_text
from launcher.rendezvous.authentication import SECRET
from launcher.run.folder import RunFolder, create_run_folder
from launcher.run.snapshot import place_snapshot
from launcher.ssh.request import Hello, read_hello

# Exit codes that are not the agent's, which says 1 in their place.
LOST = 251  # the agent did not end by itself
NEEDS_CODE = 252  # the run has a copy of the code (launch.snapshot), and this host does not share the run folder
RESERVED = (LOST, NEEDS_CODE, 255)  # 255: ssh's own
AGENT = "launcher.ssh.node"
HELLO_S, POLL_S = 60.0, 0.1


class Orders:
    """Lines of the standard input, as they come."""

    def __init__(self, fd: int) -> None:
        self._fd, self._buffer = fd, bytearray()
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
            yield bytes(line)

    def take(self, count: int) -> bytes:
        """So many bytes that follow; fewer where the input ends, or says nothing for HELLO_S."""
        while len(self._buffer) < count and not self.ended and time.monotonic() < self.heard_at + HELLO_S:
            if process.readable([self._fd], timeout_s=1.0):
                data = os.read(self._fd, 1 << 18)
                self.ended, self.heard_at = not data, time.monotonic()
                self._buffer += data
        data, self._buffer = bytes(self._buffer[:count]), self._buffer[count:]
        return data


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
        return LOST if code < 0 else reported(code, hello.name)
    finally:
        agent.kill()
        agent.wait()
        process.kill_descendants()


def reported(code: int, name: str) -> int:
    """The agent's exit code, as the launcher is to read it."""
    if code in RESERVED:  # with launch.exit_code=first
        notify(f"the exit code {code} on {name} cannot be told from the connection's own: 1 in its place")
        return 1
    return code


def _start(hello: Hello) -> subprocess.Popen[bytes]:
    ours = {SECRET: hello.secret, env.COORDINATOR: hello.coordinator, env.RUN_ID: hello.run_id}
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

    Raises InputError where it cannot be written.
    """
    try:
        folder = create_run_folder(Path(hello.run_folder))
        for name, text in hello.files.items():
            file = folder.path / name
            if not file.is_file() or file.read_text(encoding="utf-8") != text:
                write_text(file, text)
    except OSError as error:
        raise InputError(f"{hello.name} cannot write the run folder {hello.run_folder} ({error.strerror})") from error


def place_code(hello: Hello, orders: Orders) -> bool:
    """Whether the copy of the code that the run works in is here, if it has one: shared, or as it was sent now.

    Raises InputError where it cannot be written.
    """
    folder = RunFolder(Path(hello.run_folder))
    if hello.code_root is None:
        return True
    if folder.code_start.is_file() and folder.code_start.read_text(encoding="utf-8") == hello.run_id:
        return True
    if not hello.code_bytes:
        return False
    packed = io.BytesIO(orders.take(hello.code_bytes))
    try:
        place_snapshot(packed, folder, original=Path(hello.code_root), incoming=f"code-for-node-{hello.node}")
        write_text(folder.code_start, hello.run_id)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{hello.name} cannot unpack the code in {folder.path} ({error})") from error
    return True


def check_work_dir(hello: Hello) -> None:
    """Raise InputError where there is no folder to work in."""
    if not Path(hello.work_dir).is_dir():
        raise InputError(
            f"{hello.name} has no folder {hello.work_dir}, which the job works in: start where all hosts have it, or "
            "send the code along by launch.snapshot=true"
        )


def main() -> int:
    orders = Orders(0)
    try:
        deadline = time.monotonic() + HELLO_S
        while time.monotonic() < deadline and not orders.ended:
            for line in orders.read(timeout_s=1.0):
                hello = read_hello(line)
                place_files(hello)
                if not place_code(hello, orders):
                    return NEEDS_CODE
                check_work_dir(hello)
                return keep(hello, orders)
        raise LauncherError("nobody said what to run: `launcher run launch=ssh` starts this")
    except LauncherError as error:
        notify(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
