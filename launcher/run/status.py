"""A run on this machine, from outside: its state, its logs, and how to stop it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import process
from launcher.errors import InputError
from launcher.run.checkpoints import Newest
from launcher.run.folder import RunFolder, in_utc
from launcher.run.heartbeat import Heartbeats, RankState
from launcher.run.ledger import PHASE_WORDS, PhaseTime, read_phases, summarise
from launcher.run.node_state import ENDED, NodeState, node_states
from launcher.run.owner import Owner, mark_cancelled, read_owner
from launcher.run.progress import Progress
from launcher.text import printable

STARTING, LOST = "starting", "lost"
_TELLING = ("failed", LOST, "restarting", "stopping", "running", "cancelled", "stopped")  # by priority
FOLLOW_POLL_S = 0.2
LONGEST_LINE = 2000  # characters
SAME_CANCEL_S = 3.0  # two cancels within it are one, of two people or programs: a second stops without a checkpoint


@dataclass(frozen=True)
class NodeStatus:
    """The last recorded state of one node's agent; `alive` and `ranks` are current, on this host only."""

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
        """The state; `lost` if the agent disappeared before its end."""
        unfinished = self.state not in ENDED
        return LOST if unfinished and self.alive is False else self.state


@dataclass(frozen=True)
class RunStatus:
    """A run as a whole: the present or last owner of its folder, and its nodes; none before its ranks are started."""

    owner: Owner | None
    nodes: tuple[NodeStatus, ...]

    @property
    def state(self) -> str:
        """The state with the highest priority among the nodes, or that of the owner before there are nodes."""
        verdicts = {node.verdict for node in self.nodes}
        if verdicts:
            word = next((word for word in _TELLING if word in verdicts), "done")
        elif self.owner is None or self.owner.ended:
            word = self.owner.ended if self.owner else LOST
        else:
            word = LOST if self.owner.is_there() is False else STARTING
        return "cancelled" if word == LOST and self.owner and self.owner.cancelled else word

    @property
    def has_ended(self) -> bool:
        return self.state not in (STARTING, "running", "restarting", "stopping")


def status(folder: RunFolder) -> RunStatus:
    """Return the state of a run; raises InputError if none was started in the folder."""
    owner, nodes = read_owner(folder), tuple(_node_status(state) for state in node_states(folder))
    if owner is None and not nodes:
        raise InputError(f"{folder.path} does not contain a started run: give a run folder of `launcher run`")
    return RunStatus(owner, nodes)


def describe(
    run: RunStatus, *, phases: list[PhaseTime], progress: Progress, checkpoint: Newest | None = None
) -> list[str]:
    """Format a status: one line per node, the progress, the newest checkpoint, then the times of the last start."""
    lines = [line for node in run.nodes for line in _node_lines(node)]
    if not run.nodes and run.owner:
        lines = [f"{run.state} ({run.owner}, since {in_utc(run.owner.since)})"]
    lines += [f"  {progress}"] if str(progress) and (progress.step is not None or not run.has_ended) else []
    lines += [f"  {checkpoint}"] if str(checkpoint or "") else []
    newest = max((p.start for p in phases), default=0)
    last = [phase for phase in phases if phase.start in ((0, 1) if newest == 1 else (newest,))]
    return [printable(line, longest=LONGEST_LINE) for line in (*lines, *(f"  {_in_words(phase)}" for phase in last))]


def _node_lines(node: NodeStatus) -> list[str]:
    text = f"node {node.node} ({node.host}, pid {node.pid}): {node.verdict}"
    text += f", start {node.starts}" if node.starts > 1 else ""
    steps = [state.step for state in node.ranks.values()]
    if any(steps):
        silent_s = time.monotonic() - min(state.beat_at for state in node.ranks.values())
        text += f", step {min(steps)}" + (f" to {max(steps)}" if min(steps) < max(steps) else "")
        text += f", oldest heartbeat {silent_s:.1f} s ago"
    return [text, *(f"  {line}" for line in node.message.splitlines()[:1])]


def _in_words(phase: PhaseTime) -> str:
    slowest = f" (slowest {phase.slowest_s:.2f} s, {phase.slowest})" if phase.slowest_s > phase.median_s else ""
    return f"{phase.median_s:.2f} s after the command {PHASE_WORDS[phase.phase]}{slowest}"


def phases(folder: RunFolder) -> list[PhaseTime]:
    """Summarise the ledger of the last start in a folder."""
    owner = read_owner(folder)
    since = owner.since if owner else 0.0
    return summarise(line for line in read_phases(folder.ledger) if line.at >= since)


def stop(folder: RunFolder) -> str:
    """Ask a run on this host to stop, also during its start; return a message about it.

    Raises InputError if it runs elsewhere, or as another user.
    """
    run = status(folder)
    owner = run.owner
    there = owner.is_there() if owner else False
    if owner is None or there is False:
        return f"nothing runs in {folder.path}: it is {run.state}"
    if there is None:
        raise InputError(f"{folder.path} runs as {owner}: cancel it there")
    unwritten = ""
    before: Owner | None = owner
    try:
        before = mark_cancelled(folder, owner)
    except OSError as error:  # a full or read-only disk keeps no run alive
        unwritten = f"; {folder.owner} cannot be written ({error.strerror}): it will be called stopped, not cancelled"
    if before is None:
        return f"nothing was stopped: {owner} has ended, and another run has begun in {folder.path}"
    if before.cancelled and abs(time.time() - before.cancelled) < SAME_CANCEL_S:
        return f"{owner} was asked to stop a moment ago: cancel again after {SAME_CANCEL_S:g} s to stop it at once"
    try:
        process.signal_all([owner.pid], signal.SIGTERM)
    except PermissionError as error:
        raise InputError(f"{owner} belongs to another user: ask that user to cancel {folder.path}") from error
    how = "before its ranks start" if run.state == STARTING else "at the end of the step"
    asked = f"asked {owner} again: now it stops at once" if before.cancelled else f"asked {owner} to stop {how}"
    return asked + unwritten


def rank_logs(folder: RunFolder, *, rank: int | None = None) -> dict[int, Path]:
    """Return the logs of a run by rank; raises InputError, with the existing ones, if there is none."""
    logs = folder.rank_logs()
    if not logs:
        raise InputError(f"{folder.path} contains no log of a rank: give a run folder of `launcher run`")
    if rank is not None and rank not in logs:
        there = ", ".join(map(str, logs))
        raise InputError(f"{folder.path} has no log of rank {rank} (ranks with a log: {there})")
    return logs if rank is None else {rank: logs[rank]}


def read_logs(logs: dict[int, Path], *, follow: bool, ended: Any = lambda: True) -> Iterator[str]:
    """Yield lines of the logs, with the rank if there are several; with `follow` until `ended()` is true."""
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
        time.sleep(FOLLOW_POLL_S)


def _node_status(state: NodeState) -> NodeStatus:
    here = state.host == socket.gethostname()
    alive = process.is_alive(state.pid, started_at=state.started_at) if here else None
    return NodeStatus(
        node=state.node,
        host=state.host,
        pid=state.pid,
        state=state.state,
        starts=state.starts,
        message=state.message,
        alive=alive,
        ranks=_live_ranks(state) if alive else {},
    )


def _live_ranks(state: NodeState) -> dict[int, RankState]:
    """Return the current heartbeats, read from the agent's memory; empty if this user may not read it."""
    try:
        fd = os.open(f"/proc/{state.pid}/fd/{state.heartbeat_fd}", os.O_RDWR)
    except OSError:
        return {}
    heartbeats = Heartbeats.attach(fd)
    os.close(fd)
    if heartbeats is None:
        return {}
    first = min(state.ranks, default=0)
    return {first + local_rank: heartbeats.state(local_rank) for local_rank in range(heartbeats.num_ranks)}
