"""Rendezvous in the plan's order: every node gets the rank that the plan gives it, whatever its name and arrival.

A `RendezvousHandler` of torch elastic, registered as `launcher` in torch's entry-point group `torchrun.handlers`:

    torchrun --rdzv-backend=launcher --rdzv-endpoint=node2:29400 --rdzv-id=job1 --nnodes=3 --nproc-per-node=8 \
        --rdzv-conf=hosts=node2+node10+NODE1 train.py

`--rdzv-conf` keys: `plan=PATH` (a run folder or plan.json; its hosts give the order) or `hosts=A+B+C`; `node=N` where
the host's own name does not tell which node it is; `host=NAME` to go by another name; `join_timeout=S`,
`rejoin_timeout=S`, `last_call=S`, `spare_wait=S`. The endpoint is the plan's first node, which coordinates.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
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
from launcher.rendezvous.config import RendezvousConfig, free_port, refuse_hidden_loopback
from launcher.rendezvous.coordinator import Coordinator, keep_alive, listen
from launcher.rendezvous.membership import Membership
from launcher.rendezvous.membership_change import MembershipChange
from launcher.run.heartbeat import Pace

BACKEND = "launcher"
STORE_TIMEOUT = timedelta(seconds=300)


class PlanOrdered(RendezvousHandler):
    """One node's side of the rendezvous; on the plan's first node it also runs the coordinator."""

    def __init__(self, meeting: RendezvousConfig) -> None:
        self._meeting = meeting
        self._connection: socket.socket | None = None
        self._incoming = b""
        self._round = 0
        self._waiting = self._done = self._finished = False
        self._closed: str | None = None
        self.present = MembershipChange()  # who is there in the present round
        self._store_server: TCPStore | None = None
        self._coordinator = self._coordinate() if meeting.node == 0 else None

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self._meeting.run_id

    @property
    def round(self) -> int:
        """The number of the present round, from 1."""
        return self._round

    def fileno(self) -> int:
        """Readable when `num_nodes_waiting` may have changed; -1 while there is no connection."""
        return self._connection.fileno() if self._connection else -1

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all nodes; raises RendezvousTimeoutError naming those that are missing."""
        limit_s = self._meeting.rejoin_timeout_s if self._round else self._meeting.join_timeout_s
        deadline = time.monotonic() + limit_s
        while True:
            try:
                self._connect(deadline)
                go = self._join(deadline, limit_s)
                return self._enter(go)
            except ConnectionError:  # the coordinator went; it may come back
                self._disconnect()

    def num_nodes_waiting(self) -> int:
        """1 when the nodes must meet again: one joined late, came back, was lost, or the coordinator went."""
        if self._waiting or self._closed is not None:
            return 1
        try:
            while self._connection and (message := self._receive(timeout_s=0.0)) is not None:
                self._note(message)
        except ConnectionError:
            self._disconnect()
        return int(self._connection is None or self._waiting or self._closed is not None)

    def share_paces(self, paces: Mapping[int, Pace]) -> dict[int, Pace]:
        """Tell the coordinator how fast this node's ranks are; on its own node, returns what all have told."""
        self._try_send({"op": "pace", "paces": paces})
        told = self._coordinator.paces if self._coordinator else {}
        return {rank: Pace(*pace) for rank, pace in dict(told).items()}

    def all_finished(self) -> bool:
        """This node's ranks have finished well: tell the others, and say whether all nodes have."""
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
        """Tell every node that the job is over, and why."""
        self._closed = self._closed or reason
        self._try_send({"op": "close", "reason": reason})

    def shutdown(self) -> bool:
        """Leave for good; the others are told that the job is over."""
        if self._connection:
            self.set_closed()
            self._try_send({"op": "leave"})
            self._disconnect()
        if self._coordinator:
            self._coordinator.close()
            self._coordinator = None
        return True

    def _coordinate(self) -> Coordinator:
        meeting = self._meeting
        refuse_hidden_loopback(meeting.host, num_nodes=meeting.num_nodes)
        process.allow_open_files()
        roster = Membership(
            num_nodes=meeting.num_nodes,
            min_nodes=meeting.min_nodes,
            hosts=meeting.hosts,
            last_call_s=meeting.last_call_s,
            spare_wait_s=meeting.spare_wait_s,
        )
        coordinator = Coordinator(
            roster, run_id=meeting.run_id, host=meeting.host, port=meeting.port, on_begin=self._new_store
        )
        coordinator.start()
        return coordinator

    def _new_store(self) -> dict[str, Any]:
        """A fresh store for each round, so that no key of an earlier one is found in it."""
        listener = listen(self._meeting.host, 0)
        port = listener.getsockname()[1]
        self._store_server = TCPStore(
            self._meeting.host, port, is_master=True, wait_for_workers=False, timeout=STORE_TIMEOUT,
            master_listen_fd=listener.detach(),
        )  # fmt: skip
        return {"store_port": port}

    def _connect(self, deadline: float) -> None:
        meeting = self._meeting
        while self._connection is None:
            try:
                self._connection = self._dial()
                keep_alive(self._connection)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RendezvousTimeoutError(
                        f"{meeting.name} cannot reach the coordinator {meeting.host}:{meeting.port} on the plan's "
                        f"first node ({error.strerror or error}): is its agent running, and the port open?"
                    ) from error
                time.sleep(0.05 + 0.2 * random())  # spread, so that a thousand nodes do not knock at once

    def _dial(self) -> socket.socket:
        meeting = self._meeting
        source = (meeting.local_address, 0) if meeting.local_address else None
        return socket.create_connection((meeting.host, meeting.port), timeout=5, source_address=source)

    def _join(self, deadline: float, limit_s: float) -> Mapping[str, Any]:
        if self._connection is None:
            raise ConnectionError("no connection to the coordinator")
        address = self._connection.getsockname()[0]  # by which this node reaches the others, so they reach it
        join = {"op": "join", "node": self._meeting.node, "host": self._meeting.name, "address": address}
        self._send({**join, "port": free_port(address), "round": self._round})
        while time.monotonic() < deadline:
            message = self._receive(timeout_s=deadline - time.monotonic())
            if message and "go" in message:
                go: Mapping[str, Any] = message["go"]
                self._waiting = self._done = self._finished = False  # what was said before is settled by this round
                return go
            if message:
                self._note(message)
            if self._closed is not None:
                raise RendezvousClosedError(self._closed)
        raise RendezvousTimeoutError(f"waited {limit_s:g} s in vain for: {', '.join(self._ask_who())}")

    def _enter(self, go: Mapping[str, Any]) -> RendezvousInfo:
        self._round = go["round"]
        if self._coordinator:
            self._coordinator.paces.clear()
        self.present = MembershipChange(tuple(go["absent"]), {int(node): host for node, host in go["moved"].items()})
        try:
            store = TCPStore(self._meeting.host, go["store_port"], is_master=False, timeout=STORE_TIMEOUT)
        except RuntimeError as error:
            raise ConnectionError(str(error)) from error
        where = RendezvousStoreInfo(go["address"], go["port"])
        return RendezvousInfo(store, go["rank"], go["world"], where)

    def _ask_who(self) -> list[str]:
        self._send({"op": "who"})
        end = time.monotonic() + 5
        while time.monotonic() < end:
            message = self._receive(timeout_s=1.0)
            if message and "missing" in message:
                return list(message["missing"])
        return ["nodes that the coordinator did not name in time"]

    def _note(self, message: Mapping[str, Any]) -> None:
        if "waiting" in message:
            self._waiting = True
        elif "finished" in message:
            self._finished = True
        elif "closed" in message:
            self._closed = message["closed"]
        elif "refused" in message:
            raise RendezvousConnectionError(f"{self._meeting.name} was refused: {message['refused']}")

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._connection is None:
            raise ConnectionError("no connection to the coordinator")
        self._connection.settimeout(30)
        self._connection.sendall((json.dumps({"run": self._meeting.run_id, **message}) + "\n").encode())

    def _try_send(self, message: Mapping[str, Any]) -> None:
        try:
            self._send(message)
        except OSError:  # the coordinator is gone: there is nobody left to tell
            self._disconnect()

    def _receive(self, *, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None after `timeout_s`. Raises ConnectionError at the end of the connection."""
        if self._connection is None:
            raise ConnectionError("no connection to the coordinator")
        end = time.monotonic() + timeout_s
        while b"\n" not in self._incoming:
            if not process.readable([self._connection.fileno()], timeout_s=end - time.monotonic()):
                return None
            data = self._connection.recv(65536)
            if not data:
                raise ConnectionError("the coordinator closed the connection")
            self._incoming += data
        line, _, self._incoming = self._incoming.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection, self._incoming = None, b""
