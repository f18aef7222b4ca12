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
        ready = prepared_in(place)
        remedy = f"{ready}, prepared by dry_run=true, was not started: name it" if ready else "give the run's folder"
        raise InputError(f"there is no run in {place.absolute()}, nor in {RUNS}/ there: {remedy}")
    return runs[0][0].path


def prepared_in(place: Path) -> Path | None:
    """The newest folder of a run that a dry run prepared and nobody started; None where there is none."""
    ready: dict[Path, float] = {}
    for path in (path for parent in (place / RUNS, place) for path in _entries(parent)):
        with suppress(OSError):
            if not RunFolder(path).owner.exists():
                ready[path] = RunFolder(path).launch.stat().st_mtime
    return max(ready, key=ready.__getitem__, default=None)


def _folders(parent: Path) -> list[Path]:
    return [path for path in _entries(parent) if RunFolder(path).owner.is_file()]


def _entries(parent: Path) -> list[Path]:
    try:
        return list(parent.iterdir())
    except OSError:
        return []
