"""Python programs for tests, forked from an interpreter that has imported torch: 1.5 s of CPU less for each of them.

`Popen` and `run` take what subprocess's take, where the command is [sys.executable, …]. The process is a whole one with
an id, streams, a folder, an environment and an exit code of its own, and the launcher's ranks below it. Where torch's
import or the start of an interpreter is the subject, tests use subprocess. Trainings by the gpt recipe have an
interpreter that has imported what their agents would import for it, too.
"""

from __future__ import annotations

import gc
import json
import os
import re
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from launcher import process
from launcher.faststart.inherited import Inherited

MODULES = (
    *("launcher.agent.rank_agent", "launcher.rendezvous.single_node", "launcher.rendezvous.plan_ordered"),
    *("launcher.commands.prepare", "launcher.commands.run", "launcher.local.start", "launcher.cli"),
)
RECIPE = Path(__file__).parents[1] / "configs" / "recipe" / "gpt.yaml"
OWN_PROGRAM = ("script=", "module=", "program=", "recipe=")  # words of runs that do not train by that recipe
OF_START = ("PYTHON", "LD_")  # variables that an interpreter reads as it starts
ROOM = "." * 400  # for the command lines that ranks show to `ps`


class Popen(subprocess.Popen[Any]):
    """A program in a fork of the preloaded interpreter, which alone can wait for it and passes its exit code on."""

    _status = 0  # where the exit code comes from, once it runs

    def __init__(self, args: list[str], *, shell_of: Inherited | None = None, **options: Any) -> None:
        """`shell_of`: what the program's shell would have given it in place of this process."""
        self._inherited = shell_of or Inherited.of_this_process()
        super().__init__(args, **options)

    def _execute_child(self, args: list[str], executable: str, preexec_fn: Any, *rest: Any) -> None:  # type: ignore[override]
        (cwd, env), pipes = rest[2:4], rest[7:13]
        environment = dict(os.environ if env is None else env)
        assert preexec_fn is None, "shell_of says what is to be set"
        to_child, _, _, from_child, _, errors = pipes
        of_start = {name: value for name, value in environment.items() if name.startswith(OF_START)}
        trains = _trains([os.fspath(word) for word in args])
        self._interpreter = _interpreter(tuple(sorted(of_start.items())), trains=trains)
        self.pid, self._status = self._interpreter.start(
            {
                "args": [os.fspath(word) for word in args],
                "cwd": str(cwd or Path.cwd()),
                "env": environment,
                "inherited": self._inherited.to_dict(),
                "ignored": [n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN],
            },
            [fd if fd != -1 else own for fd, own in zip((to_child, from_child, errors), range(3), strict=True)],
        )
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def poll(self) -> int | None:
        return self._internal_poll()

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._internal_poll() or 0

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._status and select.select([self._status], [], [], 0)[0]:
            answer = os.read(self._status, 4)
            os.close(self._status)
            self.returncode = struct.unpack("=i", answer)[0] if answer else -signal.SIGKILL
        return self.returncode


def run(
    command: list[str], *, timeout: float, check: bool = False, input: str | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run, always with a limit."""
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options |= {} if input is None else {"stdin": subprocess.PIPE}
    with Popen(command, **options) as program:
        try:
            out, err = program.communicate(input, timeout=timeout)
        except BaseException:
            program.kill()
            raise
    done = subprocess.CompletedProcess(command, program.returncode, out, err)
    if check:
        done.check_returncode()
    return done


class _Interpreter:
    """This process's side of the preloaded interpreter, which ends with this process."""

    def __init__(self, of_start: Mapping[str, str], more: Sequence[str]) -> None:
        self._ours, theirs = socket.socketpair()
        others = {name: value for name, value in os.environ.items() if not name.startswith(OF_START)}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno()), ",".join(more), ROOM],
                env={**others, **of_start}, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._lock = threading.Lock()

    def start(self, order: dict[str, Any], streams: list[int]) -> tuple[int, int]:
        """The process id, and the descriptor from which its exit code can be read."""
        ended, tell_end = os.pipe()
        message = json.dumps(order).encode()
        with self._lock:
            socket.send_fds(self._ours, [struct.pack("=I", len(message))], [*streams, tell_end])
            self._ours.sendall(message)
            os.close(tell_end)
            pid = self._ours.recv(4)
        if not pid:
            raise RuntimeError("the preloaded interpreter has ended")
        return struct.unpack("=I", pid)[0], ended


@lru_cache(maxsize=4)
def _interpreter(of_start: tuple[tuple[str, str], ...], *, trains: bool) -> _Interpreter:
    """One for each set of variables that an interpreter reads as it starts; those that are not used any more end."""
    block = re.search(r"^preload:\n((?:  - .*\n)+)", RECIPE.read_text(), re.MULTILINE)
    assert block, RECIPE
    return _Interpreter(dict(of_start), re.findall(r"  - (\S+)", block[1]) if trains else ())


def _trains(words: Sequence[str]) -> bool:
    """Whether a command trains by the gpt recipe."""
    by_launcher = "launcher.cli" in words and "run" in words
    return any(word.endswith("/gpt.py") for word in words) or (
        by_launcher and not any(word.startswith(OWN_PROGRAM) for word in words)
    )


def serve(connection: socket.socket, more: Sequence[str]) -> None:
    """Import, then fork for each order until the other side ends."""
    from launcher.agent.fork_server import check_forkable, preload
    from launcher.agent.node import PRELOADED
    from launcher.env import SINGLE_THREADED

    before = dict(os.environ)
    preload((*PRELOADED, *MODULES, *more))
    check_forkable()
    os.environ.clear()
    os.environ.update({name: value for name, value in before.items() if name not in SINGLE_THREADED})
    gc.freeze()
    wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([connection, wake], [], [])
        with suppress(BlockingIOError):
            os.read(wake, 4096)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                tell_end = running.pop(pid)
                with suppress(BrokenPipeError):
                    os.write(tell_end, struct.pack("=i", os.waitstatus_to_exitcode(status)))
                os.close(tell_end)
        if connection in ready:
            head, fds, _, _ = socket.recv_fds(connection, 4, 4)
            if not head:  # the tests are over, or broken off
                process.signal_all(running, signal.SIGKILL)
                return
            size, data = struct.unpack("=I", head)[0], b""
            while len(data) < size:
                data += connection.recv(size - len(data))
            if (pid := os.fork()) == 0:
                _become(json.loads(data), fds)
            running[pid] = fds.pop()
            for fd in fds:
                os.close(fd)
            connection.sendall(struct.pack("=I", pid))


def _become(order: dict[str, Any], fds: list[int]) -> None:
    """In the forked child: run the program and end as an interpreter does."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, *order["ignored"]):
        signal.signal(number, signal.SIG_IGN if number in order["ignored"] else signal.SIG_DFL)
    if signal.SIGINT not in order["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, fd in enumerate(fds[:3]):
        os.dup2(fd, target)
    os.closerange(3, 4096)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    Inherited.from_dict(order["inherited"]).take_on()
    time.tzset()
    _open_streams(encoding=sys.stdin.encoding, errors=sys.stdin.errors)
    code = 1
    try:
        _run(order["args"][1:])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = code or 120  # as CPython's
        os._exit(code)


def _open_streams(**text: Any) -> None:
    sys.stdin = sys.__stdin__ = open(0, closefd=False, **text)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False, **text)  # noqa: SIM115
    text["errors"] = "backslashreplace"
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False, **text)  # noqa: SIM115


def _run(words: list[str]) -> None:
    """Run SCRIPT ARGS, -m MODULE ARGS or -c CODE ARGS as `python [-P]` does."""
    safe = words[0] == "-P"
    words = words[1:] if safe else words
    first, *rest = words
    if first in ("-m", "-c"):
        sys.path[:0] = [] if safe else [os.getcwd() if first == "-m" else ""]  # noqa: PTH109
        sys.argv = [first, *rest[1:]]
        if first == "-m":
            sys.modules.pop(rest[0], None)
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
        return
    sys.path[:0] = [] if safe else [str(Path(first).resolve().parent)]
    sys.argv = [first, *rest]
    runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), [name for name in sys.argv[2].split(",") if name])
