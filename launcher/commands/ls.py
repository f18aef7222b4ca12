"""`launcher ls`: the runs of this folder, and this user's jobs under Slurm, newest first."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.commands.invocation import Invocation
from launcher.commands.named import options, says_json
from launcher.console import notify, say, show, terminal_width
from launcher.errors import InputError
from launcher.files import read_json
from launcher.report.table import LEFT, draw
from launcher.run import status as runs
from launcher.run.folder import RunFolder, in_utc
from launcher.run.listing import prepared_in, runs_in
from launcher.run.owner import Owner, read_owner
from launcher.run.progress import Progress, progress
from launcher.text import whole_number

SHOWN = 20


@dataclass(frozen=True)
class ListedRun:
    """One run. `since`: seconds since 1970; `where`: the process or job that works in it, or did."""

    folder: str
    since: float
    state: str
    where: str
    progress: Progress

    def to_dict(self) -> dict[str, Any]:
        return {"run": self.folder, "since": self.since, "state": self.state, "where": self.where} | asdict(
            self.progress
        )


def run(invocation: Invocation) -> int:
    """Print a line for each run; `top=0` shows all."""
    wanted = options(invocation.overrides, allowed=["top", "output"])
    as_json, top = says_json(wanted), whole_number(wanted.get("top", str(SHOWN)))
    if top is None:
        raise InputError(f"top={wanted['top']} must be a number of runs; 0: all of them")
    jobs = _jobs()
    found = dict(_here(jobs)) | dict(_elsewhere(jobs))
    rows = sorted(found.values(), key=lambda row: row.since, reverse=True)
    shown = rows[: top or None]
    if as_json:
        print(json.dumps({"runs": [row.to_dict() for row in shown]}))
    else:
        show(*(_table(shown, terminal_width(sys.stdout)) if shown else [_none()]))
    if len(shown) < len(rows):
        say(f"{len(rows) - len(shown)} older runs are not shown: top=0 shows all")
    return 0


def _none() -> str:
    ready = prepared_in(Path())
    prepared = f"; {ready}, prepared by dry_run=true, was not started" if ready else ""
    return f"no run in this folder, nor in runs/ here{prepared}"


def _jobs() -> Mapping[str, tuple[str, Path]]:
    """This user's jobs that Slurm knows: id → state and folder; none where there is no Slurm."""
    if not shutil.which("squeue"):
        return {}
    from launcher.slurm.command import NoSlurm
    from launcher.slurm.life import jobs_of_user  # and with it the planner

    try:
        return jobs_of_user()
    except NoSlurm:
        return {}
    except InputError as error:
        notify(f"Slurm's jobs are not known: {error}")
        return {}


def _here(jobs: Mapping[str, tuple[str, Path]]) -> list[tuple[Path, ListedRun]]:
    return [(folder.path.resolve(), _row(folder, owner, jobs)) for folder, owner in runs_in(Path())]


def _elsewhere(jobs: Mapping[str, tuple[str, Path]]) -> list[tuple[Path, ListedRun]]:
    """Runs in other folders, as far as Slurm knows them."""
    here = {path for path, _ in _here({})}
    rows = []
    for _, path in jobs.values():
        if path.resolve() not in here and (owner := _owner(path)):
            rows.append((path.resolve(), _row(RunFolder(path), owner, jobs)))
    return rows


def _owner(path: Path) -> Owner | None:
    try:
        return read_owner(RunFolder(path))
    except InputError:
        return None


def _row(folder: RunFolder, owner: Owner, jobs: Mapping[str, tuple[str, Path]]) -> ListedRun:
    state = jobs[owner.job_id][0] if owner.job_id and owner.job_id in jobs else _state(folder, owner)
    return ListedRun(str(folder.path), owner.since, state, _where(folder, owner), progress(folder))


def _where(folder: RunFolder, owner: Owner) -> str:
    """The process or job, and the login node that knows it where that is another machine (launch.login)."""
    if not folder.login.is_file():
        return str(owner)
    return f"{owner}, submitted from {read_json(folder.login, remedy='remove it').get('login')}"


def _state(folder: RunFolder, owner: Owner) -> str:
    """The state in a word; of a job that Slurm does not know any more, what its folder says."""
    if owner.job_id is not None:
        return owner.ended or "unknown"
    try:
        return runs.status(folder).state
    except InputError:
        return "unknown"


def _table(rows: Sequence[ListedRun], width: int | None = None) -> list[str]:
    """Return a line for each run; where a terminal is too narrow, how far it is and where are in a line below."""
    now = time.time()
    cells = [
        (row.folder, _since(row.since, now), row.state, str(row.progress) if row.progress.step else "", row.where)
        for row in rows
    ]
    lines = draw(dict.fromkeys(("run", "began (UTC)", "state", "progress", "where"), LEFT), cells)
    if width is None or max(map(len, lines)) <= width:
        return lines
    first, *short = draw(dict.fromkeys(("run", "began (UTC)", "state"), LEFT), [row[:3] for row in cells])
    below = [f"  {' '.join(filter(None, row[3:]))}" for row in cells]
    return [first, *(line for pair in zip(short, below, strict=True) for line in pair)]


def _since(at: float, now: float) -> str:
    text = in_utc(at).removesuffix(" UTC")
    return text[11:] if now - at < 12 * 3600 else text[:16]
