"""The runs of a folder, newest first: what `launcher ls` shows, and what `last` names."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from launcher.errors import InputError
from launcher.run.folder import RUNS, RunFolder
from launcher.run.owner import Owner, read_owner

LAST = "last"


def runs_in(place: Path) -> list[tuple[RunFolder, Owner]]:
    """The folders in `place`/runs, and in `place` itself, that somebody has run in, with their owners; newest first."""
    found = []
    for folder in {path for parent in (place / RUNS, place) for path in _folders(parent)}:
        with suppress(InputError):  # an owner.json of something else
            if owner := read_owner(RunFolder(folder)):
                found.append((RunFolder(folder), owner))
    return sorted(found, key=lambda run: run[1].since, reverse=True)


def newest_run(place: Path) -> Path:
    """The folder of the newest run; raises InputError where there is none."""
    runs = runs_in(place)
    if not runs:
        raise InputError(f"there is no run in {place.absolute()}, nor in {RUNS}/ there: give the run's folder")
    return runs[0][0].path


def _folders(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if RunFolder(path).owner.is_file()]
    except OSError:
        return []
