"""A run on this machine, seen from outside: what it does, what it said, how to stop it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import process
from launcher.errors import InputError
from launcher.run.folder import RunFolder, read_lines
from launcher.run.heartbeat import Heartbeats, RankState
from launcher.run.ledger import PhaseTime, summarise

_CLOCK_TICK_S = 0.02  # start times are told in ticks of 10 ms
_FOLLOW_POLL_S = 0.2


@dataclass(frozen=True)
class NodeStatus:
    """One node's agent, as it last wrote it down; `alive` and `ranks` are looked up now, on this host only."""

    node: int
    host: str
    pid: int
    state: str
    starts: int
    message: str
    alive: bool | None  # None: on another host
    ranks: dict[int, RankState]

    @property
    def verdict(self) -> str:
        """The state in a word; an agent that vanished in the middle is `lost`."""
        unfinished = self.state not in ("done", "failed", "stopped")
        return "lost" if unfinished and self.alive is False else self.state


def status(folder: RunFolder) -> list[NodeStatus]:
    """The nodes of a run, in order; raises InputError where no run was started in the folder."""
    files = sorted((folder.path / "nodes").glob("node-*.json"), key=_number)
    if not files:
        raise InputError(f"{folder.path} holds no run that was started: give a run folder, as `launcher run` names it")
    return [_node_status(json.loads(file.read_text())) for file in files]


def describe(nodes: list[NodeStatus], *, phases: list[PhaseTime]) -> list[str]:
    """A status for people: one line a node, then how long the last start took."""
    lines = []
    for node in nodes:
        text = f"node {node.node} ({node.host}, pid {node.pid}): {node.verdict}"
        text += f", start {node.starts}" if node.starts > 1 else ""
        steps = [state.step for state in node.ranks.values()]
        if any(steps):
            silent_s = time.monotonic() - min(state.beat_at for state in node.ranks.values())
            text += f", step {min(steps)}" + (f" to {max(steps)}" if min(steps) < max(steps) else "")
            text += f", oldest heartbeat {silent_s:.1f} s ago"
        lines.append(text)
        lines += [f"  {line}" for line in node.message.splitlines()[:1]]
    newest = max((p.start for p in phases), default=0)
    last = [phase for phase in phases if phase.start in ((0, 1) if newest == 1 else (newest,))]
    return lines + [f"  {_in_words(phase)}" for phase in last]


def _in_words(phase: PhaseTime) -> str:
    slowest = f" (slowest {phase.slowest_s:.2f} s, {phase.slowest})" if phase.slowest_s > phase.median_s else ""
    return f"{phase.phase}: {phase.median_s:.2f} s after the command{slowest}"


def phases(folder: RunFolder) -> list[PhaseTime]:
    """The ledger in short."""
    return summarise(read_lines(folder.ledger))


def stop(folder: RunFolder) -> list[int]:
    """Ask the agents on this host to stop the run, as Ctrl-C does; returns their process ids."""
    pids = [node.pid for node in status(folder) if node.alive and node.verdict in ("running", "stopping", "restarting")]
    process.signal_all(pids, signal.SIGINT)
    return pids


def rank_logs(folder: RunFolder, *, rank: int | None = None) -> dict[int, Path]:
    """The logs of a run by rank; raises InputError where there is none, naming those there are."""
    logs = {_number(file): file for file in sorted(folder.logs.glob("rank-*.log"), key=_number)}
    if not logs:
        raise InputError(f"{folder.path} holds no log of a rank: give a run folder, as `launcher run` names it")
    if rank is not None and rank not in logs:
        there = ", ".join(map(str, logs))
        raise InputError(f"{folder.path} has no log of rank {rank} (ranks with a log: {there})")
    return logs if rank is None else {rank: logs[rank]}


def read_logs(logs: dict[int, Path], *, follow: bool, ended: Any = lambda: True) -> Iterator[str]:
    """Lines of the logs, each with its rank where there is more than one; with `follow` until `ended()` is true."""
    positions = dict.fromkeys(logs, 0)
    while True:
        last_round = not follow or ended()
        for rank, path in logs.items():
            with path.open("rb") as file:
                file.seek(positions[rank])
                data = file.read()
            whole = data if last_round else data[: data.rfind(b"\n") + 1]
            positions[rank] += len(whole)
            prefix = f"[rank {rank}] " if len(logs) > 1 else ""
            yield from (prefix + line for line in whole.decode(errors="replace").splitlines())
        if last_round:
            return
        time.sleep(_FOLLOW_POLL_S)


def _node_status(data: dict[str, Any]) -> NodeStatus:
    alive = _alive(data) if data["host"] == socket.gethostname() else None
    return NodeStatus(
        node=data["node"],
        host=data["host"],
        pid=data["pid"],
        state=data["state"],
        starts=data["starts"],
        message=data["message"],
        alive=alive,
        ranks=_live_ranks(data) if alive else {},
    )


def _alive(data: dict[str, Any]) -> bool:
    """Whether the agent's process still runs, and not another one with its number."""
    try:
        same = abs(process.started_at(data["pid"]) - data["started_at"]) < _CLOCK_TICK_S
    except ProcessLookupError:
        return False
    return same and process.state(data["pid"]) != "Z"


def _live_ranks(data: dict[str, Any]) -> dict[int, RankState]:
    """What the ranks tell right now, read from the agent's own board; empty where this user may not."""
    try:
        fd = os.open(f"/proc/{data['pid']}/fd/{data['board_fd']}", os.O_RDWR)
    except OSError:
        return {}
    board = Heartbeats.attach(fd)
    os.close(fd)
    if board is None:
        return {}
    first = min((int(rank) for rank in data["ranks"]), default=0)
    return {first + local_rank: board.state(local_rank) for local_rank in range(board.num_ranks)}


def _number(file: Path) -> int:
    found = re.search(r"-(\d+)\.", file.name)
    return int(found[1]) if found else -1
