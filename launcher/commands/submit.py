"""`launcher submit`: plan, write the run folder, hand the job to Slurm; a dry run prints the command instead."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launcher.cli import Invocation
from launcher.commands.common import checked_settings, work
from launcher.commands.run import prepare, tell_plan
from launcher.errors import InputError
from launcher.launch.slurm import submit
from launcher.launch.slurm.settings import SlurmSettings
from launcher.plan.build import make_plan


def run(invocation: Invocation) -> int:
    """Submit one job and print its id, or with dry_run=true what would run, as text to paste into a shell.

    A dry run writes the run folder too: the command that it prints works as it stands.
    """
    if invocation.multirun:
        raise InputError("`launcher submit -m` is not there yet: submit the combinations one by one")
    settings = checked_settings(with_slurm(invocation.overrides))
    slurm = SlurmSettings.from_config(settings.config["launch"])
    job = work(settings, invocation.rest)
    plan = make_plan(settings.job, settings.request, settings.config)
    tell_plan(plan)
    folder = prepare(plan, settings, name=job.name)
    print(f"run folder: {folder.path}", file=sys.stderr)
    request = submit.prepare(
        plan, slurm, run_folder=folder.path, script=job.script, args=job.args, python=sys.executable
    )
    if settings.config["dry_run"]:
        print(submit.dry_run_text(request, run_folder=folder.path))
        return 0
    print(submit.submit(request, run_folder=folder.path))
    return 0


def with_slurm(overrides: Sequence[str]) -> list[str]:
    """The overrides, with the launch group's Slurm entry unless another was chosen."""
    chosen = any(word.startswith("launch=") for word in overrides)
    return [*([] if chosen else ["launch=slurm"]), *overrides]
