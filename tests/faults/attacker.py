"""Somebody who can reach the port of a job's coordinator and has not its secret, for a bounded time.

    python tests/faults/attacker.py HOST:PORT [--seconds 60] [--seed 0] [--run-id ID] [--read PID …] [--store]

It needs nothing but the standard library and this repository. `--run-id`: it knows the job's run id, which anybody on a
cluster can (it follows from the job's number). `--read`: processes whose environment and memory it tries to read, and
which it tries to end. `--store`: the port is torch's store, which has no authentication by its own design: only noise
and idle connections, for a client of torch could delete its keys.

The last line is JSON: attacks by kind, and what was let in (`let_in`, which should be empty). The exit code is
1 where something was.
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import pwd
import random
import resource
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launcher.rendezvous.authentication import ANSWER_BYTES, NONCE_BYTES, PROOF_BYTES, REFUSAL, JobKey
from launcher.rendezvous.config import split_endpoint

ATTACK_S = 1.0  # that one attack takes at most
JOB_BEGINS_S = 300.0
GUESSES = ("", "secret", "launcher", "0" * 64, "a" * 64)
OPERATIONS = (
    b'{"run": "%s", "op": "join", "node": 1, "host": "evil", "address": "127.0.0.1", "port": 1, "round": 0}\n',
    b'{"run": "%s", "op": "close", "reason": "evil"}\n',
    b'{"run": "%s", "op": "leave"}\n',
    b'{"op": "join", "node": 0, "host": "evil", "round": 999999}\n',
    b'{"op": "pace", "paces": {"0": [1e999, null]}}\n',
)


class Attacker:
    """Each method is one attack, which raises nothing but OSError; what it was let in for is counted."""

    def __init__(self, host: str, port: int, *, run_id: str, seed: int, victims: list[int]) -> None:
        self._where, self._run_id, self._victims = (host, port), run_id, victims
        self._chance = random.Random(seed)
        self._idle: list[socket.socket] = []
        self.let_in: list[str] = []

    def connect(self) -> socket.socket:
        return socket.create_connection(self._where, timeout=ATTACK_S)

    def wait_for_the_job(self) -> None:
        """Until somebody listens, for a few minutes at most."""
        deadline = time.monotonic() + JOB_BEGINS_S
        while time.monotonic() < deadline:
            with suppress(OSError), self.connect():
                return
            time.sleep(0.02)

    def deep_json(self) -> None:
        self._send(b"[" * 60_000 + b"\n")

    def long_line(self) -> None:
        self._send(b"x" * 1_000_000)

    def noise(self) -> None:
        self._send(self._chance.randbytes(self._chance.randrange(1, 4096)))

    def http(self) -> None:
        self._send(b"GET / HTTP/1.1\r\nHost: coordinator\r\n\r\n")

    def operation_without_proof(self) -> None:
        operation = self._chance.choice(OPERATIONS)
        self._send(operation % self._run_id.encode() if b"%s" in operation else operation)

    def guessed_secret(self) -> None:
        """The proofs, made with the run id and a guess at the secret."""
        secret = self._chance.choice([*GUESSES, self._chance.randbytes(32).hex()])
        with self.connect() as connection:
            challenge = self._challenge(connection)
            connection.sendall(JobKey.of(self._run_id, secret).answer(challenge, os.urandom(NONCE_BYTES)))
            reply = self._read(connection, PROOF_BYTES)
            if reply not in (b"", REFUSAL):
                self.let_in.append(f"a proof with the secret {secret!r} was answered by {reply!r}")
            connection.sendall(self._chance.choice(OPERATIONS))

    def reflected_challenge(self) -> None:
        with self.connect() as connection:
            challenge = self._challenge(connection)
            connection.sendall((challenge * 3)[:ANSWER_BYTES])
            if (reply := self._read(connection, PROOF_BYTES)) not in (b"", REFUSAL):
                self.let_in.append(f"the challenge as its own proof was answered by {reply!r}")

    def idle_connections(self) -> None:
        """As many as this process may have."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 50
        for _ in range(min(300, limit - len(self._idle))):
            self._idle.append(self.connect())

    def one_byte_at_a_time(self) -> None:
        with self.connect() as connection:
            for _ in range(5):
                connection.sendall(b"x")
                time.sleep(0.05)

    def reset(self) -> None:
        for _ in range(50):
            with self.connect() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def half_closed(self) -> None:
        with self.connect() as connection:
            connection.shutdown(socket.SHUT_WR)
            self._read(connection, ANSWER_BYTES)

    def hurry(self) -> None:
        for _ in range(300):
            self.connect().close()

    def processes(self) -> None:
        """What the kernel keeps from other users."""
        for pid in self._victims:
            for secret in ("environ", "mem", "fd"):
                with suppress(OSError):
                    path = Path(f"/proc/{pid}/{secret}")
                    found = [*path.iterdir()] if secret == "fd" else path.open("rb").read(1)
                    self.let_in.append(f"{path} was read: {found!r}")
            with suppress(OSError):
                os.kill(pid, 0)  # what may be sent this may be sent any signal
                self.let_in.append(f"process {pid} took a signal")

    def release(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _send(self, data: bytes) -> None:
        with self.connect() as connection:
            with suppress(ConnectionError, TimeoutError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            said = self._read(connection, 4096)
            if self._run_id and self._run_id.encode() in said:
                self.let_in.append("the run id was revealed")
            if len(said) > NONCE_BYTES + PROOF_BYTES:
                self.let_in.append(f"an answer of {len(said)} bytes: {said[:200]!r}")

    def _challenge(self, connection: socket.socket) -> bytes:
        """The coordinator's first bytes. One that came late would be taken for its answer to the proof."""
        challenge = self._read(connection, NONCE_BYTES)
        if len(challenge) < NONCE_BYTES:
            raise TimeoutError("no challenge came in time")
        return challenge

    def _read(self, connection: socket.socket, num_bytes: int) -> bytes:
        """Return what arrives until the end, up to a number of bytes; open connections end after a second."""
        data, deadline = b"", time.monotonic() + ATTACK_S
        with suppress(OSError):
            while len(data) < num_bytes and time.monotonic() < deadline:
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                if not (more := connection.recv(num_bytes - len(data))):
                    break
                data += more
        return data


def become(name: str) -> None:
    """Another user, for good; only now, for its own Python may be in root's home."""
    codecs.lookup("idna")  # which the first connection imports
    user = pwd.getpwnam(name)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoint")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-id", default="")
    parser.add_argument("--read", type=int, nargs="*", default=[])
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--user", help="become this user before anything else (from root)")
    given = parser.parse_args()
    if given.user:
        become(given.user)
    host, port = split_endpoint(given.endpoint)
    one = Attacker(host, port or 0, run_id=given.run_id, seed=given.seed, victims=given.read)
    noisy = [one.deep_json, one.long_line, one.noise, one.http, one.idle_connections, one.reset, one.half_closed]
    knowing = [one.operation_without_proof, one.guessed_secret, one.reflected_challenge, one.one_byte_at_a_time]
    attacks: list[Callable[[], None]] = noisy if given.store else [*noisy, *knowing, one.hurry, one.processes]
    chance, done, refused = random.Random(given.seed), Counter[str](), Counter[str]()
    one.wait_for_the_job()
    deadline = time.monotonic() + given.seconds
    while time.monotonic() < deadline:
        attack = chance.choice(attacks)
        try:
            attack()
        except OSError as error:  # the job has not begun yet, or is over, or fends off
            refused[type(error).__name__] += 1
            time.sleep(0.01)
            if chance.random() < 0.2:
                one.release()
        done[attack.__name__] += 1
    one.release()
    let_in = one.let_in if not given.store else []  # a store answers noise as it likes
    print(
        json.dumps({"uid": os.getuid(), "attacks": done.total(), "by_kind": done, "ended": refused, "let_in": let_in})
    )
    return 1 if let_in else 0


if __name__ == "__main__":
    sys.exit(main())
