"""Membership of a job, in the plan's order: the rules of the rendezvous, without sockets, clocks or torch.

Each method returns the messages to send, as (connection, message) pairs. A round begins when every node of the plan
has joined. If a node joins again or is lost during a round, the others must join again too. A node of the plan belongs
to one agent until that agent's connection ends; a second agent for it waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.rendezvous.messages import Join, Message

Outgoing = list[tuple[int, Message]]
NAMED_MISSING = 20
MOST_SPARES = 64  # in addition to one agent per node of the plan


@dataclass
class Member:
    """One connected agent. `node` is its node in the plan, None while it has none; `wanted` the one it requested."""

    connection: int
    host: str
    wanted: int | None
    node: int | None = None
    done: bool = False  # its ranks have finished successfully
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
        self._assigned: dict[int, Member] = {}  # by node
        self._last_host: dict[int, str] = {}  # by node: the host of the last agent
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
        """The connections of the agents in the current round."""
        return frozenset(self._running)

    def is_running(self, connection: int) -> bool:
        return connection in self._running

    def join(self, connection: int, join: Join, *, now: float) -> Outgoing:
        """Handle an agent's request to join the next round."""
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
        """Handle a connection that closed without a message."""
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
        """Handle a node with finished ranks; after the last, notify every agent. Before that a new round may begin."""
        if connection in self._running:
            self._members[connection].done = True
        running = [self._members[c] for c in self._running]
        if not all(member.done for member in running):
            return []
        stopped_by = next((member.asked_to_stop for member in running if member.asked_to_stop), "")
        return [(c, {"finished": True, "stopped_by": stopped_by}) for c in self._running]

    def leave(self, connection: int) -> Outgoing:
        """Handle an agent that leaves."""
        self._remove(connection)
        return []

    def close(self, connection: int, reason: str) -> Outgoing:
        """Handle a node that ends the job: no agent may join any more. Ignored from an agent without a node."""
        member = self._members.get(connection)
        return self.close_for_all(reason) if member and member.node is not None else []

    def close_for_all(self, reason: str) -> Outgoing:
        """End the job; the first reason counts."""
        if self._closed is None:
            self._closed = reason
        return [(connection, {"closed": self._closed}) for connection in self._members]

    def tick(self, *, now: float) -> Outgoing:
        """Begin a round if all nodes are present, or if the wait for the others is over."""
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
        """Return when `tick` may next have something to do; None: only after a message."""
        if self._running or not self._members:
            return None
        ends = [self._changed_at + wait for wait in (self._spare_wait_s, self._last_call_s)]
        later = [end - now for end in ends if end > now]
        return min(later) + 0.001 if later else None

    def missing(self, connection: int) -> list[str]:
        """Return the nodes that this agent waits for, by name if known."""
        member = self._members.get(connection)
        if member and member.node is None and member.wanted in self._assigned:
            return [f"the place of node {member.wanted}, which another agent holds ({self._name(member.wanted)})"]
        names = [self._name(node) for node in range(self.num_nodes) if node not in self._ready]
        extra = len(names) - NAMED_MISSING
        return names if extra <= 0 else [*names[:NAMED_MISSING], f"and {extra} more"]

    def _name(self, node: int) -> str:
        return f"{self._hosts[node]} (node {node})" if node < len(self._hosts) else f"node {node}"

    def _changes(self, members: Sequence[Member]) -> Message:
        """Return how a round differs from the plan: absent nodes, and nodes on other hosts."""
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
        """Ask the running members to join again, once."""
        if self._called_in or not self._running:
            return []
        self._called_in = True
        return [(connection, {"waiting": 1}) for connection in self._running]

    def _assign_claimed(self) -> None:
        """Assign nodes; a restarted agent on the host of its predecessor has priority."""
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
