"""`launcher sync RUN`: upload a run that wandb kept offline, as one run however often it was restarted."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from launcher.commands.invocation import Invocation
from launcher.commands.named import named_run, options, run_folder, says_json
from launcher.console import notify, say
from launcher.errors import InputError
from launcher.run.wandb_folders import offline_runs, wandb_root


def run(invocation: Invocation) -> int:
    """Upload the newest offline run, which has the steps of all; return 1 if wandb does not take it."""
    name, words = named_run(invocation.overrides, command="sync")
    wanted = options(words, allowed=["dry_run", "output"])
    as_json, dry_run = says_json(wanted), wanted.get("dry_run", "false")
    if dry_run not in ("true", "false"):
        raise InputError(f"dry_run={dry_run} must be true or false")
    newest, *older = _found(run_folder(name).path)
    argv = [sys.executable, "-m", "wandb", "sync", str(newest)]
    for path in older:
        say(f"left out: {path}, whose steps are all in {newest.name}")
    code = 0 if dry_run == "true" else _upload(argv)
    if as_json:
        document = {"run": name, "argv": argv, "left_out": [str(path) for path in older]}
        print(json.dumps({**document, "dry_run": dry_run == "true", "code": code}))
    elif dry_run == "true":
        print(shlex.join(argv))
    return code


def _found(run_dir: Path) -> list[Path]:
    found = offline_runs(run_dir)
    if not found:
        raise InputError(
            f"{wandb_root(run_dir)} has no offline run of this job: it was online, or ran without tracking=wandb"
        )
    return found


def _upload(argv: list[str]) -> int:
    if find_spec("wandb") is None:
        raise InputError("wandb is not installed here: pip install 'nvlink-launcher[wandb]', or sync where it is")
    done = subprocess.run(argv, check=False, stdout=sys.stderr.fileno())
    if done.returncode:
        notify("wandb did not take the run; what it said is above. `wandb login` makes a login")
    return int(bool(done.returncode))
