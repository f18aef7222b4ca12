"""The progress of a run, read from its folder without torch."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from launcher.run.checkpoints import newest_good
from launcher.run.folder import RunFolder
from launcher.run.ledger import START, read_events
from launcher.run.node_state import STOPPED, states_in_words
from launcher.slurm.requeue import SAVED_KEYS, JobStart, Saved

MOST_LOOKED_AT = 100_000  # files of launch.progress


def newest_checkpoint(folder: RunFolder) -> Saved:
    """Return what a run has saved: its newest good checkpoint."""
    newest = newest_good(folder.checkpoints)
    return Saved(newest.step, newest.saved_at)


def newest_change(path: Path) -> Saved:
    """Return what a script has saved at a path: when something last changed there."""
    entries = islice((path, *path.rglob("*")) if path.is_dir() else (path,), MOST_LOOKED_AT)
    times = [found.st_mtime_ns // 10**6 for entry in entries if (found := _stat(entry)) and not _is_folder(found)]
    return Saved(at=max(times, default=None))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _is_folder(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode)


def was_stopped(folder: RunFolder, *, num_nodes: int) -> bool:
    """Return whether the agents of the last start were asked to stop, and none failed.

    An agent that is notified by another that the job is over may still be `stopping`.
    """
    states = set(states_in_words(folder, num_nodes=num_nodes))
    return bool(states & STOPPED) and states <= {*STOPPED, "stopping", "done"}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**63 else None


def starts(folder: RunFolder) -> list[JobStart]:
    """Return every start of the job in the ledger, the current one last."""
    found: list[JobStart] = []
    for event in read_events(folder.ledger):
        if event.event == START:
            restart, step, at = (_count(event.details.get(name)) for name in ("restart", *SAVED_KEYS))
            found.append(JobStart(restart or 0, Saved(step, at)))
        elif found and event.details.get("sent_back"):
            found[-1] = replace(found[-1], sent_back=True)
    return found
