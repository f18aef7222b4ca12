"""How far a run has come, read from its folder without torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

from launcher.run.folder import RunFolder, read_lines
from launcher.slurm.requeue import JobStart
from launcher.slurm.watching import node_states

CHECKPOINTS, RESULT_FILE = "checkpoints", "result.json"
START_EVENT = "slurm_start"


def newest_checkpoint(run_folder: Path) -> int | None:
    """The step of the newest complete checkpoint; None where there is none."""
    folder = run_folder / CHECKPOINTS
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    steps = [int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name))]
    return max(steps, default=None)


def is_finished(run_folder: Path) -> bool:
    """Whether the recipe wrote the result of a run that went to its end."""
    file = run_folder / RESULT_FILE
    return file.is_file() and not json.loads(file.read_text()).get("stopped")


def was_stopped(folder: RunFolder, *, num_nodes: int) -> bool:
    """Whether the agents of the start that has just ended were asked to stop, and none failed.

    One that learns from another that the job is over may still be `stopping`.
    """
    states = set(node_states(folder, num_nodes=num_nodes))
    return "stopped" in states and states <= {"stopped", "stopping", "done"}


def starts(folder: RunFolder) -> list[JobStart]:
    """Every start of the job that the ledger knows, the present one last."""
    lines = [line for line in read_lines(folder.ledger) if line.get("event") == START_EVENT]
    return [JobStart(int(line["restart"]), line["checkpoint_step"]) for line in lines]
