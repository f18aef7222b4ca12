"""nodes/node-N.json: the last state that a node's agent wrote about its part of the run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.errors import InputError
from launcher.files import read_json, write_json
from launcher.run.folder import RunFolder
from launcher.schema import from_plain
from launcher.text import printable

DONE = "done"
ENDED = frozenset({DONE, "failed", "stopped", "cancelled"})  # in these states an agent starts no more ranks
STOPPED = frozenset({"stopped", "cancelled"})
ABSENT = "absent"
_REMEDY = "start the run again"


@dataclass(frozen=True)
class NodeState:
    """`state`: running, restarting, stopping, or one of ENDED. `started_at`: of the agent, CLOCK_BOOTTIME seconds.

    `ranks`: the process of each rank; `heartbeat_fd`: the descriptor in the agent through which these send heartbeats.
    """

    node: int
    host: str
    pid: int
    started_at: float
    state: str
    starts: int
    restarts_left: int
    heartbeat_fd: int
    message: str
    updated: str
    ranks: Mapping[int, int] = field(default_factory=dict)

    def write(self, folder: RunFolder) -> None:
        """Replace this node's previous state."""
        ranks = {str(rank): pid for rank, pid in self.ranks.items()}
        write_json(folder.node_state(self.node), {**asdict(self), "ranks": ranks})


def read_node_state(file: Path) -> NodeState:
    """Read the state in a file; raises InputError if it is not valid."""
    data: dict[str, Any] = read_json(file, remedy=_REMEDY)
    try:
        ranks = {int(rank): pid for rank, pid in data["ranks"].items() if isinstance(pid, int)}
        return replace(from_plain(NodeState, {**data, "ranks": {}}), ranks=ranks)
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        why = error.problems[0] if isinstance(error, InputError) else printable(str(error))
        raise InputError(f"{file} is not a valid node state ({why}): {_REMEDY}") from error


def node_states(folder: RunFolder) -> list[NodeState]:
    """Read the states of a run's agents, in the order of their nodes."""
    return [read_node_state(file) for file in folder.node_states().values()]


def states_in_words(folder: RunFolder, *, num_nodes: int) -> list[str]:
    """Return the state of each node; `absent` if its agent has written none."""
    files = folder.node_states()
    return [read_node_state(files[node]).state if node in files else ABSENT for node in range(num_nodes)]


def node_that_is_done(folder: RunFolder) -> int | None:
    """A node with an agent that saw the ranks of all nodes end well since the present start; None where there is none.

    A file that cannot be read says nothing.
    """
    for node, file in folder.node_states().items():
        with suppress(InputError):
            if read_node_state(file).state == DONE:
                return node
    return None


def forget_node_states(folder: RunFolder) -> None:
    """Remove the states of an earlier start."""
    for file in folder.node_states().values():
        file.unlink(missing_ok=True)
