"""`launcher sync RUN`: upload a run that wandb kept offline, as one run however often it was restarted.

A run that ended before wandb was started in it gets its offline run here, from metrics.jsonl.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from launcher import env
from launcher.commands.invocation import Invocation
from launcher.commands.named import named_run, one_folder, options, says_json
from launcher.console import notify, say
from launcher.errors import InputError
from launcher.run.folder import RunFolder
from launcher.run.status import status
from launcher.run.wandb_folders import OFFLINE, is_unwritten, noted_variables, offline_runs, wandb_id, wandb_root

WRITER = "launcher.worker.metrics.wandb_process"
ENDED = b"end\n"  # as a rank says it to the writer


def run(invocation: Invocation) -> int:
    """Upload the newest offline run, which has the steps of all; return 1 if wandb does not take it."""
    name, words = named_run(invocation.overrides, command="sync")
    wanted = options(words, allowed=["dry_run", "output"])
    as_json, dry_run = says_json(wanted), wanted.get("dry_run", "false")
    if dry_run not in ("true", "false"):
        raise InputError(f"dry_run={dry_run} must be true or false")
    folder = one_folder(name)
    with env.overridden({**noted_variables(folder), **({"WANDB_MODE": "offline"} if is_unwritten(folder) else {})}):
        writes = _write(folder, dry_run=dry_run == "true") if is_unwritten(folder) else []
        newest, *older = _to_come(folder) if writes and dry_run == "true" else _found(folder.path)
        argv = [sys.executable, "-m", "wandb", "sync", str(newest)]
        for path in older:
            say(f"left out: {path}, whose steps are all in {newest.name}")
        code = 0 if dry_run == "true" else _upload(argv)
    if as_json:
        document = {"run": name, "argv": argv, "left_out": [str(path) for path in older], "writes": writes}
        print(json.dumps({**document, "dry_run": dry_run == "true", "code": code}))
    elif dry_run == "true":
        print(*(shlex.join(command) for command in (writes, argv) if command), sep="\n")
    return code


def _write(folder: RunFolder, *, dry_run: bool) -> list[str]:
    """Make an offline run of all steps, unless this is a dry run; returns the command. Raises InputError."""
    if not status(folder).has_ended:
        raise InputError(f"{folder.path} has no complete offline run yet, and goes on: sync it when it has ended")
    argv = [sys.executable, "-P", "-m", WRITER, str(folder.path)]
    if not dry_run:
        _check_installed()
        done = subprocess.run(argv, input=ENDED, stdout=subprocess.DEVNULL, check=False, env=env.environment())
        if done.returncode:
            raise InputError(f"wandb cannot write its run of {folder.metrics}, see above")
    return argv


def _to_come(folder: RunFolder) -> list[Path]:
    """What `_write` would make, and what there is already."""
    return [wandb_root(folder.path) / f"{OFFLINE}TIME-{wandb_id(folder.path)}", *offline_runs(folder.path)]


def _found(run_dir: Path) -> list[Path]:
    found = offline_runs(run_dir)
    if not found:
        raise InputError(
            f"{wandb_root(run_dir)} has no offline run of this job: it was online, or ran without tracking=wandb"
        )
    return found


def _check_installed() -> None:
    if find_spec("wandb") is None:
        raise InputError("wandb is not installed here: pip install 'nvlink-launcher[wandb]', or sync where it is")


def _upload(argv: list[str]) -> int:
    _check_installed()
    done = subprocess.run(argv, check=False, stdout=sys.stderr.fileno())
    if done.returncode:
        notify("wandb did not take the run; what it said is above. `wandb login` makes a login")
    return int(bool(done.returncode))
