"""Mutual authentication of agents and their coordinator by the job's secret.

    coordinator → agent    a nonce
    agent → coordinator    a nonce, and HMAC-SHA256(key, "agent" + both nonces)
    coordinator → agent    HMAC-SHA256(key, "coordinator" + both nonces)

Each message has a fixed length, so nothing is parsed before the proof is verified. The secret itself is never sent:
the coordinator's port follows from the run id, so another user of its host could listen there first and would receive
it. The key is derived from secret and run id, so a wrong one of either is refused in the same way, without details.

Messages after the proofs are neither encrypted nor signed: like the training's own traffic (NCCL, gloo), they trust
the network not to change packets.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import time
from dataclasses import dataclass, field

SECRET = "LAUNCHER_SECRET"  # the variable with the secret, in every agent of a job
VERSION = b"launcher-rendezvous-2 "  # changes with the messages: agents of another version are refused
NONCE_BYTES = PROOF_BYTES = 32
ANSWER_BYTES = NONCE_BYTES + PROOF_BYTES
REFUSAL = bytes(PROOF_BYTES)


class AuthenticationError(ConnectionError):
    """The other end does not have the same secret and run id."""


def new_secret() -> str:
    """Return a secret for one start of a job."""
    return secrets.token_hex(32)


def new_nonce() -> bytes:
    """Return a nonce that no earlier proof used."""
    return secrets.token_bytes(NONCE_BYTES)


@dataclass(frozen=True)
class JobKey:
    """The key that the agents of one job share. With an empty secret it is derived from the run id, which is public."""

    key: bytes = field(repr=False)

    @classmethod
    def of(cls, run_id: str, secret: str) -> JobKey:
        return cls(hmac.digest(secret.encode(), VERSION + run_id.encode(), "sha256"))

    def answer(self, challenge: bytes, nonce: bytes) -> bytes:
        """Return an agent's answer, with this nonce, to a coordinator's challenge."""
        return nonce + self._proof(b"agent", challenge, nonce)

    def reply(self, challenge: bytes, answer: bytes) -> bytes | None:
        """Return the coordinator's reply to an agent's answer; None if the answer is not a proof."""
        nonce, proof = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
        if not hmac.compare_digest(proof, self._proof(b"agent", challenge, nonce)):
            return None
        return self._proof(b"coordinator", challenge, nonce)

    def accepts(self, reply: bytes, challenge: bytes, nonce: bytes) -> bool:
        """Return whether the coordinator's reply proves that it has the same key."""
        return hmac.compare_digest(reply, self._proof(b"coordinator", challenge, nonce))

    def _proof(self, role: bytes, challenge: bytes, nonce: bytes) -> bytes:
        return hmac.digest(self.key, role + challenge + nonce, "sha256")


def authenticate(connection: socket.socket, key: JobKey, *, timeout_s: float) -> None:
    """Run an agent's side of the proofs.

    Raises AuthenticationError if the coordinator has another key, and ConnectionError or TimeoutError if it closes the
    connection or does not answer.
    """
    deadline = time.monotonic() + timeout_s
    challenge = _read(connection, NONCE_BYTES, deadline)
    nonce = new_nonce()
    connection.sendall(key.answer(challenge, nonce))
    if not key.accepts(_read(connection, PROOF_BYTES, deadline), challenge, nonce):
        raise AuthenticationError("the coordinator and this agent do not have the same secret and run id")


def _read(connection: socket.socket, num_bytes: int, deadline: float) -> bytes:
    data = b""
    while len(data) < num_bytes:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        more = connection.recv(num_bytes - len(data))
        if not more:
            raise ConnectionError("the coordinator ended the connection before its proof")
        data += more
    return data
