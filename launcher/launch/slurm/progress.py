"""How far a run has come, read from its folder without torch."""

from __future__ import annotations

import re
from pathlib import Path

from launcher.launch.run_folder import RunFolder, read_lines
from launcher.launch.slurm.requeue import Start

CHECKPOINTS, RESULT_FILE = "checkpoints", "result.json"
START_EVENT = "slurm_start"


def newest_checkpoint(run_folder: Path) -> int | None:
    """The step of the newest complete checkpoint; None where there is none."""
    folder = run_folder / CHECKPOINTS
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    steps = [int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name))]
    return max(steps, default=None)


def is_finished(run_folder: Path) -> bool:
    """Whether the recipe wrote its result."""
    return (run_folder / RESULT_FILE).is_file()


def starts(folder: RunFolder) -> list[Start]:
    """Every start of the job that the ledger knows, the present one last."""
    lines = [line for line in read_lines(folder.ledger) if line.get("event") == START_EVENT]
    return [Start(int(line["restart"]), line["checkpoint_step"]) for line in lines]
