"""`launcher status RUN`: print the state of a run, here or under Slurm."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.commands.invocation import Invocation
from launcher.commands.named import named_run, options, run_folder, says_json, submitted
from launcher.console import show
from launcher.errors import InputError
from launcher.run import status as runs
from launcher.run.checkpoints import newest_good
from launcher.run.folder import RunFolder, SweepFolder
from launcher.run.progress import progress


def run(invocation: Invocation) -> int:
    """Print the status; return 1 if the run failed or was lost."""
    name, words = named_run(invocation.overrides, command="status")
    as_json = says_json(options(words, allowed=["output"]))
    if submitted(name):
        return _of_job(name, as_json=as_json)
    folder = run_folder(name)
    found, reached, saved = runs.status(folder), progress(folder), newest_good(folder.checkpoints)
    rows, table = _of_sweep(folder, found) if SweepFolder(folder.path).members.is_file() else ([], "")
    if as_json:
        nodes = [
            {"node": n.node, "host": n.host, "pid": n.pid, "state": n.verdict, "starts": n.starts} for n in found.nodes
        ]
        checkpoint = {"checkpoint_step": saved.step, "checkpoint": str(saved)}
        document = {"state": found.state, "nodes": nodes, **asdict(reached), **checkpoint}
        print(json.dumps(document | ({"runs": rows} if rows else {})))
    else:
        lines = runs.describe(found, phases=runs.phases(folder), progress=reached, checkpoint=saved)
        show(*lines, *([table] if rows else []))
    return int(found.state in ("failed", runs.LOST))


def _of_sweep(folder: RunFolder, found: runs.RunStatus) -> tuple[list[dict[str, Any]], str]:
    """Return a row for each run of a sweep here, and their table."""
    from launcher.commands.sweep_here import rows_here  # and with it the planner, which one run does not need
    from launcher.slurm.sweep import table

    sweep, rows = SweepFolder(folder.path), []
    for number, row in enumerate(rows_here(sweep)):
        try:
            state = runs.status(sweep.run(number)).state
        except InputError:  # it has not begun
            state = "never started" if found.has_ended else "waiting"
        rows.append({**row, "state": state})
    return rows, table(rows)


def _of_job(name: str, *, as_json: bool) -> int:
    from launcher.slurm import life  # and with it the planner, which a run on this machine does not need
    from launcher.slurm.sweep import results, table

    job = life.status(life.SubmittedRun.find(name))
    members = life.ended_members(job.job_id) if SweepFolder(Path(name)).members.is_file() else {}
    rows = results(Path(name), ended=job.ended, members=members)  # of a sweep: one per run
    if as_json:
        print(json.dumps(job.to_dict() | ({"runs": rows} if rows else {})))
    else:
        show(str(job), *([table(rows)] if rows else []))
    return int(job.ended and job.state != "COMPLETED")
