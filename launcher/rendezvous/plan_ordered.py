"""Rendezvous in the plan's order: every node gets its rank in the plan, independent of its name and time of arrival.

A `RendezvousHandler` of torch elastic, registered as `launcher` in torch's entry-point group `torchrun.handlers`:

    LAUNCHER_SECRET=… torchrun --rdzv-backend=launcher --rdzv-endpoint=node2:29400 --rdzv-id=job1 --nnodes=3 \
        --nproc-per-node=8 --rdzv-conf=hosts=node2+node10+NODE1 train.py

`LAUNCHER_SECRET`, the same on every node, keeps others out (`openssl rand -hex 32` makes one). `--rdzv-conf` keys:
`plan=PATH` (a run folder or plan.json; its hosts give the order) or `hosts=A+B+C`; `node=N` if the host's name does
not identify the node; `host=NAME` to use another name; `join_timeout=S`, `rejoin_timeout=S`, `last_call=S`,
`spare_wait=S`. The endpoint is the plan's first node, which coordinates; `[::1]:29400` for an IPv6 address.

torch's store, through which the ranks find each other, has no authentication: anyone who reaches its port can change
it. So it listens only on the coordinator's address, on a port that the coordinator announces.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from random import random
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from launcher import process
from launcher.console import notify
from launcher.rendezvous.authentication import AuthenticationError, JobKey, authenticate
from launcher.rendezvous.config import BACKEND, RendezvousConfig, endpoint, refuse_hidden_loopback
from launcher.rendezvous.coordinator import Coordinator, PortTaken, keep_alive
from launcher.rendezvous.membership import Membership
from launcher.rendezvous.membership_change import MembershipChange
from launcher.rendezvous.messages import (
    MAX_LINE_BYTES,
    MAX_REASON,
    Begin,
    Message,
    MessageError,
    decode,
    encode,
    read_seconds,
)
from launcher.rendezvous.store import join_store, open_store
from launcher.run.heartbeat import Pace

DIAL_S = 5.0
SEND_S = 30.0
REFUSED_S = 15.0  # an earlier job's coordinator may occupy the port this long


class PlanOrdered(RendezvousHandler):
    """One node's side of the rendezvous; on the plan's first node it also runs the coordinator."""

    def __init__(self, config: RendezvousConfig) -> None:
        self._config, self._key = config, JobKey.of(config.run_id, config.secret)
        self._ports = config.ports  # where to look for the coordinator, its last place first
        self._connection: socket.socket | None = None
        self._incoming = b""
        self._round = 0
        self._waiting = self._done = self._finished = False
        self._hang_announced = False
        self._asker = self._stopped_by = ""
        self._silent_s = 0.0
        self._closed: str | None = None
        self.change = MembershipChange()  # how the current round differs from the plan
        self._store_server: TCPStore | None = None
        self._coordinator = self._coordinate() if config.node == 0 else None

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self._config.run_id

    @property
    def use_agent_store(self) -> bool:
        """Let the ranks also use the store of each round, so that rank 0 need not open one on all addresses."""
        return True

    @property
    def round(self) -> int:
        """The number of the current round, from 1."""
        return self._round

    def fileno(self) -> int:
        """Return a descriptor that is readable when `num_nodes_waiting` may have changed; -1 without a connection."""
        return self._connection.fileno() if self._connection else -1

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all nodes; raises RendezvousTimeoutError with the missing ones."""
        limit_s = self._config.rejoin_timeout_s if self._round else self._config.join_timeout_s
        deadline = time.monotonic() + limit_s
        while True:
            try:
                self._connect(deadline)
                begin = self._join(deadline, limit_s)
                self._announce_stop()
                return self._enter(begin)
            except (ConnectionError, TimeoutError, MessageError):  # the coordinator is gone; it may come back
                self._disconnect()

    def num_nodes_waiting(self) -> int:
        """Return 1 if a new round is needed: a node joined late, came back or was lost, or the coordinator is gone.

        When the ranks of all nodes have finished no round follows, though the others close the job as they leave.
        """
        if not self._waiting and self._closed is None:
            try:
                while self._connection and (message := self._receive(timeout_s=0.0)) is not None:
                    self._note(message)
            except (OSError, MessageError):
                self._disconnect()
        needed = self._connection is None or self._waiting or self._closed is not None
        return int(needed and not self._finished)

    def share(self, paces: Mapping[int, Pace], *, silent_s: float, asks: bool) -> dict[int, Pace]:
        """Report the pace of this node's ranks, and how long none of them has done anything.

        `asks`: request the silence of the whole job, available soon from `silent_s`. On the coordinator's node, return
        the paces that all nodes have reported.
        """
        self._try_send({"op": "pace", "paces": paces, "silent_s": silent_s, "asks": asks})
        reported = self._coordinator.paces if self._coordinator else {}
        return {rank: Pace(*pace) for rank, pace in dict(reported).items()}

    @property
    def silent_s(self) -> float:
        """How long no rank of any node has done anything, by the coordinator's last answer."""
        return self._silent_s

    def announce_hang(self) -> None:
        """Ask every other node to report where its ranks are: this one will soon end the job or the round."""
        self._try_send({"op": "hang"})

    def take_hang(self) -> bool:
        """Return whether another node has announced a hang since the last call."""
        announced, self._hang_announced = self._hang_announced, False
        return announced

    def announce_stop(self, asker: str) -> None:
        """Report that this agent was asked to stop the job, by `asker`; again in each round that follows."""
        self._asker = f"{asker} on {self._config.name}"[:MAX_REASON]
        with suppress(OSError):  # without the coordinator there will be a new round
            self._announce_stop()

    def _announce_stop(self) -> None:
        """A new round, and a coordinator that came back, know nothing of it: the ranks' end would be a completion."""
        if self._asker:
            self._send({"op": "stop", "reason": self._asker})

    @property
    def stopped_by(self) -> str:
        """Who asked an agent of the job to stop it; known once all have finished, empty where nobody did."""
        return self._stopped_by

    def all_finished(self) -> bool:
        """Report that this node's ranks have finished successfully; return whether those of all nodes have."""
        if not self._done:
            self._done = True
            self._try_send({"op": "done"})
        self.num_nodes_waiting()
        return self._finished

    def is_closed(self) -> bool:
        return self._closed is not None

    def set_closed(self) -> None:
        self.close_for_all("the job was closed")

    def close_for_all(self, reason: str) -> None:
        """Report to every node that the job is over, with the reason."""
        self._closed = self._closed or reason
        self._try_send({"op": "close", "reason": reason[:MAX_REASON]})

    def shutdown(self) -> bool:
        """Leave permanently; this ends the job for the others too."""
        if self._connection:
            self.set_closed()
            self._try_send({"op": "leave"})
            self._disconnect()
        if self._coordinator:
            self._coordinator.close()
            self._coordinator = None
        return True

    def _coordinate(self) -> Coordinator:
        config = self._config
        refuse_hidden_loopback(config.host, num_nodes=config.num_nodes)
        process.allow_open_files()
        membership = Membership(
            num_nodes=config.num_nodes,
            min_nodes=config.min_nodes,
            hosts=config.hosts,
            last_call_s=config.last_call_s,
            spare_wait_s=config.spare_wait_s,
        )
        coordinator = self._listening(membership)
        coordinator.start()
        return coordinator

    def _listening(self, membership: Membership) -> Coordinator:
        """Return the coordinator on the first port that no other program has.

        Raises PortTaken if there is none, or if this job's own coordinator has one: it would have two.
        """
        host, *ports = self._config.host, *self._ports
        for port in ports:
            try:
                return Coordinator(membership, key=self._key, host=host, port=port, on_begin=self._new_store)
            except PortTaken:
                if port == ports[-1] or self._answers(port):
                    raise
                notify(f"another program listens on {endpoint(host, port)}: taking the run's next port")
        raise AssertionError("there is at least one port")

    def _answers(self, port: int) -> bool:
        """Return whether a coordinator of this job listens on a port."""
        try:
            self._dial(port).close()
        except OSError:
            return False
        return True

    def _new_store(self) -> dict[str, Any]:
        """Open a new store for each round, without keys of earlier ones."""
        self._store_server, port = open_store(self._config.host)
        return {"store_port": port}

    def _connect(self, deadline: float) -> None:
        refused_since: float | None = None
        while self._connection is None:
            errors = self._look_for_coordinator()
            if self._connection is not None:
                return
            now = time.monotonic()
            refused = all(isinstance(error, AuthenticationError) for error in errors)
            refused_since = (refused_since or now) if refused else None
            if refused_since and now > min(deadline, refused_since + REFUSED_S):
                raise RendezvousConnectionError(self._refusal()) from errors[0]
            if now > deadline:
                raise RendezvousTimeoutError(
                    f"{self._config.name} cannot reach the coordinator {self._where()} on the plan's first node "
                    f"({errors[0].strerror or errors[0]}): is its agent running, and the port open?"
                ) from errors[0]
            time.sleep(0.05 + 0.2 * random())  # jitter, so that a thousand nodes do not connect at once

    def _look_for_coordinator(self) -> list[OSError]:
        """Connect to the coordinator on one of its ports; return the errors if it is on none."""
        errors = []
        for port in self._ports:
            try:
                self._connection = self._dial(port)
                self._ports = (port, *(other for other in self._ports if other != port))
                return []
            except OSError as error:
                errors.append(error)
        return errors

    def _dial(self, port: int) -> socket.socket:
        """Open a connection to a peer that has proved to be this job's coordinator."""
        config = self._config
        source = (config.local_address, 0) if config.local_address else None
        connection = socket.create_connection((config.host, port), timeout=DIAL_S, source_address=source)
        try:
            keep_alive(connection)
            authenticate(connection, self._key, timeout_s=DIAL_S)
        except OSError:
            connection.close()
            raise
        return connection

    def _where(self) -> str:
        first, *others = self._config.ports
        return " or ".join([endpoint(self._config.host, first), *map(str, others)])

    def _refusal(self) -> str:
        return (
            f"the process on {self._where()} is not the coordinator of the job of {self._config.name}: it has "
            "another secret (LAUNCHER_SECRET) or another run id (--rdzv-id)"
        )

    def _join(self, deadline: float, limit_s: float) -> Begin:
        self._send({"op": "join", "node": self._config.node, "host": self._config.name, "round": self._round})
        while time.monotonic() < deadline:
            message = self._receive(timeout_s=deadline - time.monotonic())
            if message and isinstance(begin := message.get("go"), dict):
                self._silent_s, self._hang_announced = 0.0, False
                self._waiting = self._done = self._finished = False  # this round replaces earlier messages
                return Begin.from_message(begin)
            if message:
                self._note(message)
            if self._closed is not None:
                raise RendezvousClosedError(self._closed)
        raise RendezvousTimeoutError(f"waited {limit_s:g} s without success for: {', '.join(self._ask_who())}")

    def _enter(self, begin: Begin) -> RendezvousInfo:
        """Enter a round; its store is at the address where this node reaches the coordinator."""
        if self._connection is None:
            raise ConnectionError("no connection to the coordinator")
        self._round = begin.round
        if self._coordinator:
            self._coordinator.paces.clear()
        self.change = MembershipChange(begin.absent, begin.moved)
        address = self._connection.getpeername()[0]
        store = join_store(address, begin.store_port)
        return RendezvousInfo(store, begin.rank, begin.world, RendezvousStoreInfo(address, begin.store_port))

    def _ask_who(self) -> list[str]:
        self._send({"op": "who"})
        end = time.monotonic() + 5
        while time.monotonic() < end:
            message = self._receive(timeout_s=1.0)
            if message and isinstance(missing := message.get("missing"), list):
                return [str(name) for name in missing]
        return ["nodes that the coordinator did not name in time"]

    def _note(self, message: Message) -> None:
        if "waiting" in message:
            self._waiting = True
        elif "hang" in message:
            self._hang_announced = True
        elif "silent_s" in message:
            self._silent_s = read_seconds(message, "silent_s")
        elif "finished" in message:
            self._finished, self._stopped_by = True, str(message.get("stopped_by", ""))
        elif "closed" in message:
            self._closed = str(message["closed"])
        elif "refused" in message:
            raise RendezvousConnectionError(f"{self._config.name} was refused: {message['refused']}")

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._connection is None:
            raise ConnectionError("no connection to the coordinator")
        self._connection.settimeout(SEND_S)
        self._connection.sendall(encode(message))

    def _try_send(self, message: Mapping[str, Any]) -> None:
        try:
            self._send(message)
        except OSError:  # the coordinator is gone: nothing to report to
            self._disconnect()

    def _receive(self, *, timeout_s: float) -> Message | None:
        """Return the next message; None after `timeout_s`. Raises ConnectionError if the connection closes."""
        if self._connection is None:
            raise ConnectionError("no connection to the coordinator")
        end = time.monotonic() + timeout_s
        while b"\n" not in self._incoming:
            if len(self._incoming) > MAX_LINE_BYTES:
                raise MessageError("a line without end")
            if not process.readable([self._connection.fileno()], timeout_s=end - time.monotonic()):
                return None
            data = self._connection.recv(65536)
            if not data:
                raise ConnectionError("the coordinator closed the connection")
            self._incoming += data
        line, _, self._incoming = self._incoming.partition(b"\n")
        return decode(line)

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection, self._incoming = None, b""
