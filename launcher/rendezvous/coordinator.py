"""The coordinator: a thread on the plan's first node that lets the agents of all nodes meet in the plan's order.

JSON lines over TCP, one connection for each node. A connection that ends without a word is a lost node, so a dead
agent is noticed at once and a dead machine by TCP's own keep-alive, in about ten seconds.
"""

from __future__ import annotations

import json
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from launcher.errors import InputError
from launcher.rendezvous.membership import Membership, Outgoing

MAX_LINE_BYTES = 65536
FAREWELL_S = 5.0
KEEP_ALIVE = {socket.TCP_KEEPIDLE: 4, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 3}


@dataclass
class _Peer:
    connection: socket.socket
    incoming: bytes = b""
    outgoing: bytes = b""
    known: bool = False  # it has named our run


class Coordinator:
    """Serves one job's rendezvous until `close`. `on_begin` is called before each round; its value goes to everyone."""

    def __init__(
        self,
        roster: Membership,
        *,
        run_id: str,
        host: str,
        port: int,
        on_begin: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._roster, self._run_id, self._on_begin = roster, run_id, on_begin
        self._listener = listen(host, port)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake_read, self._wake_write = socket.socketpair()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._peers: dict[int, _Peer] = {}
        self._closing_at: float | None = None
        self.paces: dict[int, tuple[int, float]] = {}  # rank → (step, own seconds until then), by its agent
        self._thread = threading.Thread(target=self._serve, name="coordinator", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop serving, after the agents that are still connected have had a moment to leave."""
        self._closing_at = time.monotonic() + FAREWELL_S
        self._wake_write.send(b"x")
        self._thread.join()
        for end in (self._listener, self._wake_read, self._wake_write, self._selector):
            end.close()

    def _serve(self) -> None:
        while self._closing_at is None or (self._peers and time.monotonic() < self._closing_at):
            for key, events in self._selector.select(self._timeout()):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake_read:
                    self._wake_read.recv(64)
                elif (peer := self._peers.get(key.fd)) is not None:
                    self._serve_peer(key.fd, peer, events)
            self._send_all(self._roster.tick(now=time.monotonic()))
        for fd in list(self._peers):
            self._drop(fd)

    def _timeout(self) -> float | None:
        if self._closing_at is not None:
            return max(0.0, self._closing_at - time.monotonic())
        return self._roster.next_tick_s(now=time.monotonic())

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        keep_alive(connection)
        self._peers[connection.fileno()] = _Peer(connection)
        self._selector.register(connection, selectors.EVENT_READ)

    def _serve_peer(self, fd: int, peer: _Peer, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(fd, peer)
        if events & selectors.EVENT_READ:
            self._read(fd, peer)

    def _read(self, fd: int, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(MAX_LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:  # reset by the other end, or timed out
            data = b""
        *lines, peer.incoming = (peer.incoming + data).split(b"\n")
        if not data or len(peer.incoming) > MAX_LINE_BYTES:
            self._lose(fd)
            return
        for line in lines:
            try:
                self._handle(fd, peer, json.loads(line))
            except (ValueError, KeyError, TypeError):  # not one of ours: a port scan, another version
                self._lose(fd)
                return

    def _handle(self, fd: int, peer: _Peer, message: dict[str, Any]) -> None:
        if message["run"] != self._run_id:
            peer.outgoing += _line({"refused": f"this coordinator serves another run ({self._run_id})"})
            self._flush(fd, peer)
            return
        peer.known = True
        now = time.monotonic()
        match message["op"]:
            case "join":
                self._send_all(self._roster.join(fd, message, now=now))
            case "who":
                self._send_all([(fd, {"missing": self._roster.missing()})])
            case "close":
                self._send_all(self._roster.close(fd, str(message["reason"])))
            case "pace":
                self.paces |= {int(rank): (int(step), float(s)) for rank, (step, s) in message["paces"].items()}
            case "done":
                self._send_all(self._roster.done(fd))
            case "leave":
                self._send_all(self._roster.leave(fd))

    def _send_all(self, outgoing: Outgoing) -> None:
        extra = self._on_begin() if any("go" in message for _, message in outgoing) else {}
        for fd, message in outgoing:
            if peer := self._peers.get(fd):
                peer.outgoing += _line({"go": message["go"] | extra} if "go" in message else message)
                self._flush(fd, peer)

    def _flush(self, fd: int, peer: _Peer) -> None:
        with suppress(BlockingIOError):
            try:
                peer.outgoing = peer.outgoing[peer.connection.send(peer.outgoing) :] if peer.outgoing else b""
            except (BrokenPipeError, ConnectionResetError):  # its end of file is read next, and tells the roster
                peer.outgoing = b""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.outgoing else 0)
        self._selector.modify(fd, events)

    def _lose(self, fd: int) -> None:
        self._drop(fd)
        self._send_all(self._roster.lost(fd, now=time.monotonic()))

    def _drop(self, fd: int) -> None:
        self._selector.unregister(fd)
        self._peers.pop(fd).connection.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on this one address; raises InputError with the reason where that is impossible."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(4096)
        return listener
    except OSError as error:
        raise InputError(
            f"the coordinator cannot listen on {host}:{port} ({error.strerror or error}): this must be an address of "
            "the plan's first node and a free port; set launch.coordinator=HOST:PORT"
        ) from error


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice within about ten seconds that the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in KEEP_ALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _line(message: dict[str, Any]) -> bytes:
    return (json.dumps(message) + "\n").encode()
