"""Who takes part in a job, in the plan's order: the rules of the rendezvous, without sockets, clocks or torch.

Each method returns the messages to send, as (connection, message) pairs. A round begins when every node of the plan
has joined; a node that joins again, or is lost, while a round runs makes the others join again too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Outgoing = list[tuple[int, Message]]
NAMED_MISSING = 20


@dataclass
class Member:
    """One connected agent. `node` is its place in the plan, None for a spare."""

    connection: int
    host: str
    address: str
    port: int
    node: int | None
    done: bool = False  # its ranks have finished well


class Membership:
    """The state of one job's rendezvous."""

    def __init__(
        self,
        *,
        num_nodes: int,
        min_nodes: int | None = None,
        hosts: Sequence[str] = (),
        last_call_s: float = 30.0,
        spare_wait_s: float = 10.0,
    ) -> None:
        self.num_nodes, self.min_nodes = num_nodes, min_nodes or num_nodes
        self._hosts = tuple(hosts)
        self._last_call_s, self._spare_wait_s = last_call_s, spare_wait_s
        self._members: dict[int, Member] = {}
        self._seats: dict[int, Member] = {}  # by node, of those that have one
        self._ready: set[int] = set()  # nodes that wait for the next round
        self._running: set[int] = set()  # connections
        self._told = False  # the running members know that they must join again
        self._changed_at = 0.0
        self._closed: str | None = None
        self.round = 0

    @property
    def members(self) -> int:
        return len(self._members)

    def join(self, connection: int, message: Mapping[str, Any], *, now: float) -> Outgoing:
        """An agent wants to be in the next round. `message`: node (or null), host, address, port, round it knows of."""
        if self._closed is not None:
            return [(connection, {"closed": self._closed})]
        node = message["node"]
        if node is not None and not 0 <= node < self.num_nodes:
            return [
                (
                    connection,
                    {"refused": f"node {node} is not in a plan of {self.num_nodes} nodes (0 to {self.num_nodes - 1})"},
                )
            ]
        self.round = max(self.round, int(message["round"]))
        outgoing: Outgoing = []
        present = self._members.get(connection)
        if present:
            present.port = message["port"]
            self._running.discard(connection)
            if present.node is not None:
                self._ready.add(present.node)
        else:
            outgoing += self._make_room(node, host=message["host"])
            member = Member(connection, message["host"], message["address"], message["port"], None)
            self._members[connection] = member
            if node is not None and node not in self._seats:
                self._seat(member, node)
        self._changed_at = now
        outgoing += self._call_in() if self._members[connection].node is not None else []
        return outgoing + self.tick(now=now)

    def lost(self, connection: int, *, now: float) -> Outgoing:
        """A connection ended without a word."""
        if connection not in self._members:
            return []
        self._changed_at = now
        was_running = connection in self._running
        self._remove(connection)
        return (self._call_in() if was_running else []) + self.tick(now=now)

    def done(self, connection: int) -> Outgoing:
        """A node's ranks have finished; when all have, everyone is told, and until then a new round may call it in."""
        if connection in self._running:
            self._members[connection].done = True
        if not all(self._members[c].done for c in self._running):
            return []
        return [(c, {"finished": True}) for c in self._running]

    def leave(self, connection: int) -> Outgoing:
        """An agent is done."""
        self._remove(connection)
        return []

    def close(self, connection: int, reason: str) -> Outgoing:
        """A node says that the job is over: nobody may join any more. A spare or a replaced agent has no say."""
        member = self._members.get(connection)
        if member is None or member.node is None:
            return []
        if self._closed is None:
            self._closed = reason
        return [(connection, {"closed": self._closed}) for connection in self._members]

    def tick(self, *, now: float) -> Outgoing:
        """Begin a round where everyone is there, or where the wait for the others is over."""
        if self._running or self._closed is not None:
            return []
        waited = now - self._changed_at
        if waited >= self._spare_wait_s:
            self._seat_spares()
        ready = len(self._ready)
        enough = ready == self.num_nodes or (ready >= self.min_nodes and waited >= self._last_call_s)
        return self._begin([self._seats[node] for node in sorted(self._ready)]) if enough else []

    def next_tick_s(self, *, now: float) -> float | None:
        """After how long `tick` may have something to do; None where only a message can."""
        if self._running or not self._members:
            return None
        ends = [self._changed_at + wait for wait in (self._spare_wait_s, self._last_call_s)]
        later = [end - now for end in ends if end > now]
        return min(later) + 0.001 if later else None

    def missing(self) -> list[str]:
        """The nodes of the plan that have not joined, by name where names are known."""
        absent = [node for node in range(self.num_nodes) if node not in self._ready]
        names = [f"{self._hosts[n]} (node {n})" if n < len(self._hosts) else f"node {n}" for n in absent]
        extra = len(names) - NAMED_MISSING
        return names if extra <= 0 else [*names[:NAMED_MISSING], f"and {extra} more"]

    def _departures(self, seated: Sequence[Member]) -> Message:
        """Where a round differs from the plan: nodes that are absent, and nodes that sit on another host."""
        there = {m.node: m.host for m in seated}
        moved = {node: host for node, host in there.items() if node is not None and host != self._planned(node, host)}
        return {"absent": [n for n in range(self.num_nodes) if n not in there], "moved": moved}

    def _planned(self, node: int, unknown: str) -> str:
        return self._hosts[node] if node < len(self._hosts) else unknown

    def _seat(self, member: Member, node: int) -> None:
        member.node = node
        self._seats[node] = member
        self._ready.add(node)

    def _remove(self, connection: int) -> None:
        member = self._members.pop(connection, None)
        self._running.discard(connection)
        if member and member.node is not None:
            del self._seats[member.node]
            self._ready.discard(member.node)

    def _make_room(self, node: int | None, *, host: str) -> Outgoing:
        """A second agent for one node and host replaces the first: that one was restarted, or is a ghost."""
        holder = self._seats.get(node) if node is not None else None
        if holder is None or holder.host != host:
            return []
        self._remove(holder.connection)
        return [(holder.connection, {"refused": f"another agent joined as node {node} from {host}"})]

    def _call_in(self) -> Outgoing:
        """Ask those who still run to join again; once is enough."""
        if self._told or not self._running:
            return []
        self._told = True
        return [(connection, {"waiting": 1}) for connection in self._running]

    def _seat_spares(self) -> None:
        vacant = [node for node in range(self.num_nodes) if node not in self._seats]
        spares = [m for m in self._members.values() if m.node is None]
        for member, node in zip(spares, vacant, strict=False):
            self._seat(member, node)

    def _begin(self, seated: Sequence[Member]) -> Outgoing:
        self.round += 1
        self._told = False
        self._running = {m.connection for m in seated}
        first = seated[0]
        common = {"round": self.round, "world": len(seated), "address": first.address, "port": first.port}
        common |= self._departures(seated)
        self._ready.clear()
        for member in seated:
            member.done = False
        return [(m.connection, {"go": {**common, "rank": rank, "node": m.node}}) for rank, m in enumerate(seated)]
