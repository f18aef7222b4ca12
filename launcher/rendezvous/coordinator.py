"""The coordinator: a thread on the plan's first node that runs the rendezvous of all nodes in the plan's order.

Each node has one TCP connection: the proofs of authentication.py, then JSON lines. A connection that closes without
a message is a lost node, so a dead agent is noticed at once, and a dead machine by TCP keep-alive in about ten
seconds.

A peer that has not joined yet is a stranger: their number is limited, and each gets a few seconds and a few bytes.
An invalid message ends only the connection of its sender.
"""

from __future__ import annotations

import errno
import resource
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from launcher.errors import InputError, LauncherError
from launcher.rendezvous.authentication import ANSWER_BYTES, REFUSAL, JobKey, new_nonce
from launcher.rendezvous.config import endpoint
from launcher.rendezvous.membership import Membership, Outgoing
from launcher.rendezvous.messages import (
    MAX_LINE_BYTES,
    Join,
    Message,
    MessageError,
    decode,
    encode,
    read_paces,
    read_reason,
    read_seconds,
)

FAREWELL_S = 5.0
STRANGER_S = 10.0  # time for a peer to authenticate and join
MOST_STRANGERS = 512
SHARE_FOR_STRANGERS = 8  # strangers may use 1/8 of this process's descriptors
MAX_OUTGOING_BYTES = 4 * MAX_LINE_BYTES  # for a peer that does not read
READ_BYTES = 65536
PAUSE_S = 0.2  # pause in accepting when no descriptor is free
DEAD_MS = 10_000  # unanswered data means that the machine is gone
KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 4,
    socket.TCP_KEEPINTVL: 2,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: DEAD_MS,
}


class PortTaken(InputError):
    """Another program listens there."""


@dataclass
class _Peer:
    connection: socket.socket
    challenge: bytes = field(default_factory=new_nonce)
    since: float = field(default_factory=time.monotonic)
    proven: bool = False
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytes = b""


class Coordinator:
    """Serves one job's rendezvous until `close`. `on_begin` is called before each round; its value is sent to all."""

    def __init__(
        self,
        membership: Membership,
        *,
        key: JobKey,
        host: str,
        port: int,
        on_begin: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._membership, self._key, self._on_begin = membership, key, on_begin
        self._listener = listen(host, port)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake_read, self._wake_write = socket.socketpair()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._peers: dict[int, _Peer] = {}
        self._strangers: dict[int, _Peer] = {}  # subset of the peers, in order of arrival
        self._most_strangers = membership.num_nodes + most_strangers()  # all nodes may connect at once
        self._paused_until: float | None = None
        self._closing_at: float | None = None
        self.paces: dict[int, tuple[int, float]] = {}  # rank → (step, own seconds until then), by its agent
        self._active_at: dict[int, float] = {}  # connection → last activity of a rank of its node
        self._thread = threading.Thread(target=self._run, name="coordinator", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop serving, after a short time for connected agents to leave."""
        self._closing_at = time.monotonic() + FAREWELL_S
        self._wake_write.send(b"x")
        self._thread.join()
        for end in (self._listener, self._wake_read, self._wake_write, self._selector):
            end.close()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # our own fault: no peer should wait forever because of it
            reason = f"the coordinator failed: {type(error).__name__}: {error}"
            self._send_all(self._membership.close_for_all(reason))
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            for fd in list(self._peers):
                self._drop(fd)

    def _serve(self) -> None:
        while self._closing_at is None or (self._members_left() and time.monotonic() < self._closing_at):
            for key, events in self._selector.select(self._timeout()):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake_read:
                    self._wake_read.recv(64)
                elif (peer := self._peers.get(key.fd)) is not None:
                    self._serve_peer(key.fd, peer, events)
            self._dismiss_strangers()
            self._send_all(self._membership.tick(now=time.monotonic()))

    def _members_left(self) -> bool:
        return len(self._peers) > len(self._strangers)

    def _timeout(self) -> float | None:
        now = time.monotonic()
        ends = [end for end in (self._closing_at, self._paused_until) if end is not None]
        ends += [peer.since + STRANGER_S for peer in list(self._strangers.values())[:1]]
        waits = [max(0.0, end - now) for end in ends]
        tick_s = None if self._closing_at is not None else self._membership.next_tick_s(now=now)
        return min([*waits, *([] if tick_s is None else [tick_s])], default=None)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has gone again
            return
        except OSError:  # no descriptor is free
            self._pause()
            return
        if len(self._strangers) >= self._most_strangers:
            self._drop(next(iter(self._strangers)))
        connection.setblocking(False)
        peer = _Peer(connection)
        fd = connection.fileno()
        self._peers[fd] = self._strangers[fd] = peer
        self._selector.register(connection, selectors.EVENT_READ)
        try:
            keep_alive(connection)
            self._send(fd, peer, peer.challenge)
        except OSError:  # it has gone again
            self._lose(fd)

    def _pause(self) -> None:
        """Close the oldest stranger's connection, and stop accepting briefly."""
        for fd in list(self._strangers)[:1]:
            self._drop(fd)
        self._selector.unregister(self._listener)
        self._paused_until = time.monotonic() + PAUSE_S

    def _dismiss_strangers(self) -> None:
        """Close connections of strangers that have not joined in time; resume accepting after a pause."""
        now = time.monotonic()
        if self._paused_until is not None and now >= self._paused_until:
            self._paused_until = None
            self._selector.register(self._listener, selectors.EVENT_READ)
        for fd, peer in list(self._strangers.items()):
            if now < peer.since + STRANGER_S:
                return
            self._drop(fd)

    def _serve_peer(self, fd: int, peer: _Peer, events: int) -> None:
        """Read and write; any error ends only this peer's connection."""
        try:
            if events & selectors.EVENT_WRITE:
                self._send(fd, peer, b"")
            if events & selectors.EVENT_READ:
                self._read(fd, peer)
        except (OSError, MessageError):  # reset by the peer or timed out; or not one of our agents
            self._lose(fd)

    def _read(self, fd: int, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(READ_BYTES if peer.proven else ANSWER_BYTES + 1 - len(peer.incoming))
        except BlockingIOError:
            return
        if not data:
            self._lose(fd)
            return
        peer.incoming += data
        if not peer.proven:
            self._read_answer(fd, peer)
            return
        *lines, rest = peer.incoming.split(b"\n") if b"\n" in data else [peer.incoming]
        peer.incoming = rest
        if len(rest) > MAX_LINE_BYTES:
            raise MessageError("a line without end")
        for line in lines:
            if self._peers.get(fd) is peer:
                self._handle(fd, decode(line))

    def _read_answer(self, fd: int, peer: _Peer) -> None:
        if len(peer.incoming) < ANSWER_BYTES:
            return
        reply = self._key.reply(peer.challenge, bytes(peer.incoming))
        peer.incoming.clear()
        if reply is None:
            self._send(fd, peer, REFUSAL)
            self._drop(fd)
            return
        peer.proven = True
        self._send(fd, peer, reply)

    def _handle(self, fd: int, message: Message) -> None:
        now = time.monotonic()
        match message.get("op"):
            case "join":
                self._join(fd, Join.from_message(message), now=now)
            case "who":
                self._send_all([(fd, {"missing": self._membership.missing(fd)})])
            case "close":
                self._send_all(self._membership.close(fd, read_reason(message)))
            case "pace":
                self._note_paces(fd, message, now=now)
            case "hang":
                others = self._membership.running - {fd} if self._membership.is_running(fd) else ()
                self._send_all([(other, {"hang": 1}) for other in others])
            case "stop":
                self._send_all(self._membership.stop(fd, read_reason(message)))
            case "done":
                self._send_all(self._membership.done(fd))
            case "leave":
                self._send_all(self._membership.leave(fd))
            case other:
                raise MessageError(f"no such operation: {str(other)[:20]}")

    def _join(self, fd: int, join: Join, *, now: float) -> None:
        outgoing = self._membership.join(fd, join, now=now)
        if fd in self._membership:
            self._strangers.pop(fd, None)
        self._send_all(outgoing)

    def _note_paces(self, fd: int, message: Message, *, now: float) -> None:
        """Store a node's report; if it asks, answer how long the whole job has been silent."""
        paces, silent_s = read_paces(message), read_seconds(message, "silent_s")
        if not self._membership.is_running(fd):
            return
        self.paces |= paces
        self._active_at[fd] = now - silent_s
        active = [self._active_at.get(node, now) for node in self._membership.running]
        if message.get("asks") is True:
            self._send_all([(fd, {"silent_s": now - max(active)})])

    def _send_all(self, outgoing: Outgoing) -> None:
        extra: dict[str, Any] = {}
        if any("go" in message for _, message in outgoing):
            try:
                extra = self._on_begin()
            except (LauncherError, OSError, RuntimeError) as error:
                outgoing = self._membership.close_for_all(f"the coordinator cannot open the round's store: {error}")
        for fd, message in outgoing:
            if peer := self._peers.get(fd):
                try:
                    self._send(fd, peer, encode({"go": message["go"] | extra} if "go" in message else message))
                except (OSError, MessageError):  # the next read returns end-of-file and marks it lost
                    with suppress(OSError):
                        peer.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, fd: int, peer: _Peer, data: bytes) -> None:
        """Send what the peer accepts now; the rest follows when its socket is writable."""
        peer.outgoing += data
        if len(peer.outgoing) > MAX_OUTGOING_BYTES:
            raise MessageError("the peer does not read")
        with suppress(BlockingIOError):
            peer.outgoing = peer.outgoing[peer.connection.send(peer.outgoing) :] if peer.outgoing else b""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.outgoing else 0)
        self._selector.modify(fd, events)

    def _lose(self, fd: int) -> None:
        self._drop(fd)
        self._send_all(self._membership.lost(fd, now=time.monotonic()))

    def _drop(self, fd: int) -> None:
        self._active_at.pop(fd, None)
        self._strangers.pop(fd, None)
        self._selector.unregister(fd)
        self._peers.pop(fd).connection.close()


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket on this address; raises InputError with the reason if that is impossible."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(4096)
        return listener
    except OSError as error:
        kind = PortTaken if error.errno == errno.EADDRINUSE else InputError
        raise kind(
            f"the coordinator cannot listen on {endpoint(host, port)} ({error.strerror or error}): this must be an "
            "address of the plan's first node and a free port; set launch.coordinator=HOST:PORT"
        ) from error


def keep_alive(connection: socket.socket) -> None:
    """Make the kernel detect within about ten seconds that the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in KEEP_ALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def most_strangers() -> int:
    """Return how many strangers, in addition to one per node, this process has descriptors for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(MOST_STRANGERS, soft // SHARE_FOR_STRANGERS))
