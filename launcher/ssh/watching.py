"""The agents of a run, each behind an ssh connection of its own, watched until the run is over.

An agent that ends by itself says by its exit code how the run ended, and the rendezvous has ended the others. A host
that is lost (ssh ends, or the agent was killed) is dialled again as often as launch.max_restarts allows: its agent
takes its place in the rendezvous again, and all ranks start from their newest checkpoint. Else the run ends.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import FrameType

from launcher import process
from launcher.ssh.keeper import LOST, NEEDS_CODE
from launcher.ssh.request import Hello

NO_CONNECTION = 255  # the exit code of ssh where it is not the command's: ssh(1)
POLL_S, ALIVE_EVERY_S, DIAL_EVERY_S = 0.1, 2.0, 2.0
MOST_AT_ONCE = 1 << 18
BACK_S = 30.0  # a connection that has held for so long is back
SETTLE_S = 30.0  # after one agent has ended, the others do so within so long
END_S = 10.0  # for a host to end its agent, before its connection is cut


@dataclass
class Connection:
    """One host's agent behind ssh. `outbox`: what ssh has not taken yet; `packed`: the code that a host may need."""

    argv: tuple[str, ...]
    hello: Hello
    variables: Mapping[str, str]
    packed: Callable[[], bytes] = bytes
    process: subprocess.Popen[bytes] | None = None
    outbox: bytearray = field(default_factory=bytearray)
    needs_code: bool = False
    lost_at: float | None = None
    dialled_at: float = 0.0

    @property
    def code(self) -> int | None:
        """How ssh has ended; None while it runs."""
        return self.process.poll() if self.process else None

    @property
    def runs(self) -> bool:
        return self.process is not None and self.code is None

    def dial(self) -> None:
        """Start ssh, out of reach of the terminal's Ctrl-C; it does not outlive this process."""
        follow = partial(process.die_with_parent, os.getpid(), signal.SIGTERM)
        self.process = subprocess.Popen(
            self.argv, stdin=subprocess.PIPE, env=self.variables, start_new_session=True, preexec_fn=follow
        )
        if self.process.stdin:
            os.set_blocking(self.process.stdin.fileno(), False)
        code = self.packed() if self.needs_code else b""
        self.outbox = bytearray(replace(self.hello, code_bytes=len(code)).line() + code)
        self.dialled_at = time.monotonic()

    def say(self, order: str) -> None:
        """Have a line sent, as soon as ssh takes it."""
        self.outbox += order.encode() + b"\n"

    @property
    def stdin(self) -> int | None:
        """The descriptor that takes the outbox, if there is anything in it."""
        return self.process.stdin.fileno() if self.outbox and self.process and self.process.stdin else None

    def flush(self) -> None:
        """Hand ssh as much as it takes now."""
        if (stdin := self.stdin) is None:
            return
        try:
            del self.outbox[: os.write(stdin, self.outbox[:MOST_AT_ONCE])]
        except BlockingIOError:
            return
        except OSError:  # ssh has ended, which its exit code says
            self.outbox.clear()

    def close(self) -> None:
        """End ssh, and with it what it keeps on the host."""
        if self.process and self.runs:
            self.process.terminate()
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@dataclass
class HostsWatch:
    """The connections of one run, until all have ended. `restarts`: how many lost hosts may still be dialled again.

    `refusal`: the exit code of an agent that could not start, which the others would wait for; None: unknown.
    """

    connections: Sequence[Connection]
    restarts: int
    redial_s: float  # for so long a lost host is tried again
    notify: Callable[[str], None]
    refusal: int | None = None
    signals: list[int] = field(default_factory=list)
    _passed_on: int = 0
    _alive_at: float = 0.0
    _ending_at: float | None = None
    _result: int | None = None

    def listen(self, numbers: Sequence[signal.Signals]) -> None:
        """Take over the signals that ask for a stop."""
        for number in numbers:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.signals.append(number)

    def wait(self) -> int:
        """Dial all hosts and wait for the end of the run: 0, or the exit code of the agent that ended it."""
        try:
            for connection in self.connections:
                connection.dial()
            while self._goes_on():
                self._say_alive()
                self._pass_signals_on()
                for connection in self.connections:
                    connection.flush()
                    self._look_at(connection)
                self._end_if_due()
                self._pause()
        finally:
            for connection in self.connections:
                connection.close()
        return 1 if self._result is None else self._result

    def _pause(self) -> None:
        """Wait a while, or until ssh takes more of what is to be sent."""
        outboxes = [stdin for c in self.connections if (stdin := c.stdin) is not None]
        if outboxes:
            process.writable(outboxes, timeout_s=POLL_S)
        else:
            time.sleep(POLL_S)

    def _goes_on(self) -> bool:
        """Whether a host's end is still to come or to be looked at, or a lost host to be dialled."""
        return any(c.process is not None or (c.lost_at is not None and self._result is None) for c in self.connections)

    def _say_alive(self) -> None:
        if time.monotonic() < self._alive_at:
            return
        self._alive_at = time.monotonic() + ALIVE_EVERY_S
        for connection in self.connections:
            if connection.runs:
                connection.say("alive")

    def _pass_signals_on(self) -> None:
        """The first signal asks the agents to stop, a second one ends ranks at once, a third one ends everything."""
        while self._passed_on < len(self.signals):
            number = self.signals[self._passed_on]
            self._passed_on += 1
            for connection in self.connections:
                connection.say(f"signal {int(number)}" if self._passed_on < 3 else "end")

    def _look_at(self, connection: Connection) -> None:
        """Act on the end of a host's ssh, once; dial a lost host again."""
        now, code = time.monotonic(), connection.code
        if connection.process is None:
            if connection.lost_at is not None:
                self._dial_again(connection)
        elif code is None:
            if now > connection.dialled_at + BACK_S:  # it is back: if it is lost now, that is another time
                connection.lost_at = None
        elif code == NO_CONNECTION and connection.lost_at is not None:
            connection.process = None
        elif code == NEEDS_CODE and not connection.needs_code and self._result is None and not self.signals:
            connection.needs_code = True
            connection.dial()
        else:
            connection.process = connection.lost_at = None
            if code in (NO_CONNECTION, LOST) or code < 0:
                self._lose(connection, code)
            else:
                self._finish(code)

    def _finish(self, code: int) -> None:
        self._result = max(self._result or 0, code)
        settle_s = 0.0 if code == self.refusal else SETTLE_S
        self._ending_at = self._ending_at or time.monotonic() + settle_s

    def _lose(self, connection: Connection, code: int) -> None:
        name = connection.hello.name
        why = "its agent was killed" if code == LOST else f"ssh ended with {code}"
        if self.signals or self._result is not None:
            self._finish(1)
        elif self.restarts:
            self.restarts -= 1
            connection.lost_at = time.monotonic()
            self.notify(f"{name} was lost ({why}): dialling it again for {self.redial_s:g} s")
        else:
            self.notify(f"{name} was lost ({why}): ending the run; launch.max_restarts=N would dial it again")
            self._end_all()

    def _dial_again(self, connection: Connection) -> None:
        """Dial a lost host from time to time, for so long as the others wait for it."""
        now, since = time.monotonic(), connection.lost_at or 0.0
        if self._result is not None or self.signals:
            connection.lost_at = None
            self._finish(1)
        elif now > since + self.redial_s:
            connection.lost_at = None
            self.notify(f"{connection.hello.name} did not come back within {self.redial_s:g} s: ending the run")
            self._end_all()
        elif now > connection.dialled_at + DIAL_EVERY_S:
            connection.dial()

    def _end_all(self) -> None:
        self._finish(1)
        self._ending_at = time.monotonic()

    def _end_if_due(self) -> None:
        """End the agents that are left when the run is over; one that does not even take that order is cut off."""
        if self._ending_at is None or time.monotonic() < self._ending_at:
            return
        if left := [c for c in self.connections if c.runs]:
            for connection in left:
                connection.say("end")
                connection.flush()
            self._ending_at = time.monotonic() + END_S
            if all(c.outbox for c in left):
                for connection in left:
                    connection.close()


def as_text(argv: Sequence[str]) -> str:
    """A command to paste into a shell."""
    return shlex.join(argv)
