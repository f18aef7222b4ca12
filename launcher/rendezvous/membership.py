"""Who takes part in a job, in the plan's order: the rules of the rendezvous, without sockets, clocks or torch.

Each method returns the messages to send, as (connection, message) pairs. A round begins when every node of the plan
has joined; a node that joins again, or is lost, while a round runs makes the others join again too. A node of the
plan belongs to the agent that took it until that agent's connection ends: a second one for it waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.rendezvous.messages import Join, Message

Outgoing = list[tuple[int, Message]]
NAMED_MISSING = 20
MOST_SPARES = 64  # besides one for each node of the plan


@dataclass
class Member:
    """One connected agent. `node` is its place in the plan, None while it has none; `wanted` the one it asked for."""

    connection: int
    host: str
    wanted: int | None
    node: int | None = None
    done: bool = False  # its ranks have finished well
    asked_to_stop: str = ""  # by whom


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
        self._assigned: dict[int, Member] = {}  # by node, of those that have one
        self._last_host: dict[int, str] = {}  # by node, of the agent that last had it
        self._ready: set[int] = set()  # nodes that wait for the next round
        self._running: set[int] = set()  # connections
        self._called_in = False  # the running members know that they must join again
        self._changed_at = 0.0
        self._closed: str | None = None
        self.round = 0

    def __contains__(self, connection: int) -> bool:
        return connection in self._members

    @property
    def closed(self) -> bool:
        return self._closed is not None

    @property
    def running(self) -> frozenset[int]:
        """The connections of the agents in the present round."""
        return frozenset(self._running)

    def is_running(self, connection: int) -> bool:
        return connection in self._running

    def join(self, connection: int, join: Join, *, now: float) -> Outgoing:
        """An agent wants to be in the next round."""
        if self._closed is not None:
            return [(connection, {"closed": self._closed})]
        if join.node is not None and not 0 <= join.node < self.num_nodes:
            rule = f"node {join.node} is not in a plan of {self.num_nodes} nodes (0 to {self.num_nodes - 1})"
            return [(connection, {"refused": rule})]
        if connection not in self._members and len(self._members) >= 2 * self.num_nodes + MOST_SPARES:
            return [(connection, {"refused": f"{len(self._members)} agents are here, for {self.num_nodes} nodes"})]
        self.round = max(self.round, join.round)
        member = self._members.get(connection)
        if member:
            self._running.discard(connection)
            if member.node is not None:
                self._ready.add(member.node)
        else:
            member = Member(connection, join.host, join.node)
            self._members[connection] = member
            if join.node is not None and join.node not in self._assigned:
                self._assign(member, join.node)
        self._changed_at = now
        outgoing = self._call_in() if member.node is not None else []
        return outgoing + self.tick(now=now)

    def lost(self, connection: int, *, now: float) -> Outgoing:
        """A connection ended without a word."""
        if connection not in self._members:
            return []
        self._changed_at = now
        was_running = connection in self._running
        self._remove(connection)
        return (self._call_in() if was_running else []) + self.tick(now=now)

    def stop(self, connection: int, asker: str) -> Outgoing:
        """An agent was asked to stop the job, by `asker`: how the ranks then end says nothing of the work."""
        if member := self._members.get(connection):
            member.asked_to_stop = asker
        return []

    def done(self, connection: int) -> Outgoing:
        """A node's ranks have finished; when all have, every agent learns it, and until then a new round may begin."""
        if connection in self._running:
            self._members[connection].done = True
        running = [self._members[c] for c in self._running]
        if not all(member.done for member in running):
            return []
        stopped_by = next((member.asked_to_stop for member in running if member.asked_to_stop), "")
        return [(c, {"finished": True, "stopped_by": stopped_by}) for c in self._running]

    def leave(self, connection: int) -> Outgoing:
        """An agent is done."""
        self._remove(connection)
        return []

    def close(self, connection: int, reason: str) -> Outgoing:
        """A node says that the job is over: nobody may join any more. An agent without a node has no say."""
        member = self._members.get(connection)
        return self.close_for_all(reason) if member and member.node is not None else []

    def close_for_all(self, reason: str) -> Outgoing:
        """The job is over; the first reason counts."""
        if self._closed is None:
            self._closed = reason
        return [(connection, {"closed": self._closed}) for connection in self._members]

    def tick(self, *, now: float) -> Outgoing:
        """Begin a round where everyone is there, or where the wait for the others is over."""
        if self._running or self._closed is not None:
            return []
        waited = now - self._changed_at
        self._assign_claimed()
        if waited >= self._spare_wait_s:
            self._assign_spares()
        ready = len(self._ready)
        enough = ready == self.num_nodes or (ready >= self.min_nodes and waited >= self._last_call_s)
        return self._begin([self._assigned[node] for node in sorted(self._ready)]) if enough else []

    def next_tick_s(self, *, now: float) -> float | None:
        """After how long `tick` may have something to do; None where only a message can."""
        if self._running or not self._members:
            return None
        ends = [self._changed_at + wait for wait in (self._spare_wait_s, self._last_call_s)]
        later = [end - now for end in ends if end > now]
        return min(later) + 0.001 if later else None

    def missing(self, connection: int) -> list[str]:
        """Whom this agent waits for, by name where names are known."""
        member = self._members.get(connection)
        if member and member.node is None and member.wanted in self._assigned:
            return [f"the place of node {member.wanted}, which another agent holds ({self._name(member.wanted)})"]
        names = [self._name(node) for node in range(self.num_nodes) if node not in self._ready]
        extra = len(names) - NAMED_MISSING
        return names if extra <= 0 else [*names[:NAMED_MISSING], f"and {extra} more"]

    def _name(self, node: int) -> str:
        return f"{self._hosts[node]} (node {node})" if node < len(self._hosts) else f"node {node}"

    def _changes(self, members: Sequence[Member]) -> Message:
        """Where a round differs from the plan: nodes that are absent, and nodes that are on another host."""
        there = {m.node: m.host for m in members}
        moved = {node: host for node, host in there.items() if node is not None and host != self._planned(node, host)}
        return {"absent": [n for n in range(self.num_nodes) if n not in there], "moved": moved}

    def _planned(self, node: int, unknown: str) -> str:
        return self._hosts[node] if node < len(self._hosts) else unknown

    def _assign(self, member: Member, node: int) -> None:
        member.node = node
        self._assigned[node] = member
        self._last_host[node] = member.host
        self._ready.add(node)

    def _remove(self, connection: int) -> None:
        member = self._members.pop(connection, None)
        self._running.discard(connection)
        if member and member.node is not None:
            del self._assigned[member.node]
            self._ready.discard(member.node)

    def _call_in(self) -> Outgoing:
        """Ask those who still run to join again; once is enough."""
        if self._called_in or not self._running:
            return []
        self._called_in = True
        return [(connection, {"waiting": 1}) for connection in self._running]

    def _assign_claimed(self) -> None:
        """A restarted agent that waited for its predecessor's connection to end is on the same host: it goes first."""
        for member in self._members.values():
            node = member.wanted
            if member.node is not None or node is None or node in self._assigned:
                continue
            if member.host == self._last_host[node]:
                self._assign(member, node)

    def _assign_spares(self) -> None:
        vacant = [node for node in range(self.num_nodes) if node not in self._assigned]
        spares = [m for m in self._members.values() if m.node is None]
        for member, node in zip(spares, vacant, strict=False):
            self._assign(member, node)

    def _begin(self, members: Sequence[Member]) -> Outgoing:
        self.round += 1
        self._called_in = False
        self._running = {m.connection for m in members}
        common = {"round": self.round, "world": len(members), **self._changes(members)}
        self._ready.clear()
        for member in members:
            member.done = False
        return [(m.connection, {"go": {**common, "rank": rank, "node": m.node}}) for rank, m in enumerate(members)]
