"""How far a run has come, read from its folder without torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from launcher.run.checkpoints import newest_step
from launcher.run.folder import RunFolder
from launcher.run.ledger import START, read_events
from launcher.run.node_state import STOPPED, states_in_words
from launcher.slurm.requeue import JobStart


def newest_checkpoint(folder: RunFolder) -> int | None:
    """The step of the newest complete checkpoint; None where there is none."""
    return newest_step(folder.checkpoints)


def was_stopped(folder: RunFolder, *, num_nodes: int) -> bool:
    """Whether the agents of the start that has just ended were asked to stop, and none failed.

    One that learns from another that the job is over may still be `stopping`.
    """
    states = set(states_in_words(folder, num_nodes=num_nodes))
    return bool(states & STOPPED) and states <= {*STOPPED, "stopping", "done"}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**63 else None


def starts(folder: RunFolder) -> list[JobStart]:
    """Every start of the job that the ledger knows, the present one last."""
    found: list[JobStart] = []
    for event in read_events(folder.ledger):
        if event.event == START:
            restart, step = event.details.get("restart"), event.details.get("checkpoint_step")
            found.append(JobStart(_count(restart) or 0, _count(step)))
        elif found and event.details.get("sent_back"):
            found[-1] = replace(found[-1], sent_back=True)
    return found
