"""`launcher submit`: plan, write the run folder, hand the job to Slurm; a dry run prints the command instead."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster import Cluster
from launcher.commands.claim import claimed, may_claim
from launcher.commands.common import checked_settings, plan_to_run, work
from launcher.commands.invocation import Invocation
from launcher.commands.prepare import named_folder, say_plan, say_variables, write_planned_run
from launcher.config.compose import load, sweep
from launcher.config.settings import Settings
from launcher.console import say, tell
from launcher.errors import InputError
from launcher.planner import Plan
from launcher.planner.record import PROGRAM_KEYS
from launcher.run.folder import RunFolder, SweepFolder
from launcher.run.owner import Owner, hand_to_job, read_owner, this_process, withdraw
from launcher.slurm import submit
from launcher.slurm.request import SubmitRequest
from launcher.slurm.settings import SlurmSettings
from launcher.slurm.sweep import SweepMember


def run(invocation: Invocation) -> int:
    """Submit one job and print its id, or with dry_run=true what would run, as text to paste into a shell.

    A dry run writes its run folder too, so that the command works as it stands; into a run that exists it writes
    nothing.
    """
    if invocation.multirun:
        return run_sweep(invocation)
    settings = checked_settings(with_slurm(invocation.overrides))
    slurm = slurm_of(settings)
    path, owner = named_folder(settings), this_process(submitting=True)
    job = work(settings, invocation.rest)
    if path is not None and not settings.options.dry_run:
        may_claim(path, owner)
    plan = plan_to_run(settings, invocation.overrides)
    say_plan(plan)
    for line in (*submit.warnings(plan, slurm, settings.options.launch), *submit.left_behind(slurm)):
        tell(line)
    to_run = submit.ToRun(job.program, job.args, sys.executable, other_clusters(plan, slurm))
    if settings.options.dry_run:
        say_variables(plan)
        return _dry_run(Prepared(plan, settings, slurm, to_run), path, owner, name=job.name)
    submit.check_size(plan, slurm)
    with claimed(path, owner, name=job.name) as folder:
        request = Prepared(plan, settings, slurm, to_run).write(folder)
        job_id = submit.submit(request)
    hand_to_job(folder, owner, job_id)
    say(f"run folder: {folder.path}")
    print(job_id)
    return 0


@dataclass(frozen=True)
class Prepared:
    """A job that is ready to be written down and submitted."""

    plan: Plan
    settings: Settings
    slurm: SlurmSettings
    to_run: submit.ToRun

    def write(self, folder: RunFolder) -> SubmitRequest:
        """Write what the job reads; returns the command that submits it."""
        request = submit.make_request(self.plan, self.slurm, self.to_run, run_folder=folder.path)
        write_planned_run(folder, self.plan, self.settings)
        submit.write_run_files(folder.path, self.plan, self.slurm, self.to_run.submission())
        return request


def _dry_run(prepared: Prepared, path: Path | None, owner: Owner, *, name: str) -> int:
    """Print the command. In a folder that no run has used, also write what it reads, and leave the folder free."""
    if path is not None and read_owner(RunFolder(path)) is not None:
        request = submit.make_request(prepared.plan, prepared.slurm, prepared.to_run, run_folder=path)
        say(f"dry run: {path} is a run already, and stays as it is; its own files are not those of this command")
        print(submit.dry_run_text(request, run_folder=path))
        return 0
    with claimed(path, owner, name=name) as folder:
        request = prepared.write(folder)
    withdraw(folder, owner, None)
    say(f"run folder: {folder.path}")
    print(submit.dry_run_text(request, run_folder=folder.path))
    return 0


def run_sweep(invocation: Invocation) -> int:
    """Submit every combination as one job array: one folder, in it one run folder for each, one table of results."""
    combinations = sweep(with_slurm(invocation.overrides))
    every = [checked_settings(words) for words in combinations]
    first = every[0]
    if len({(s.options.launch, repr(s.options.slurm), *program(s)) for s in every}) > 1:
        raise InputError(
            "the runs of one sweep share script=, module=, program= and launch.*: sweep over other keys, or submit "
            "them apart"
        )
    slurm = slurm_of(first)
    job = work(first, invocation.rest)
    plans = [plan_to_run(s, words) for s, words in zip(every, combinations, strict=True)]
    to_run = submit.ToRun(job.program, job.args, sys.executable, other_clusters(plans[0], slurm))
    same = set[str](combinations[0]).intersection(*combinations)
    members = [
        SweepMember(tuple(word for word in words if word not in same), plan)
        for words, plan in zip(combinations, plans, strict=True)
    ]
    for line in submit.left_behind(slurm):
        tell(line)
    return _submit_sweep(Sweep(every, members, slurm, to_run), name=f"{job.name}-sweep")


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, each with its settings."""

    settings: Sequence[Settings]
    members: Sequence[SweepMember]
    slurm: SlurmSettings
    to_run: submit.ToRun

    def write(self, folder: SweepFolder) -> SubmitRequest:
        """Write what the jobs read; returns the command that submits them."""
        request = submit.make_sweep_request(self.members, self.slurm, self.to_run, folder=folder.path)
        for index, (settings, member) in enumerate(zip(self.settings, self.members, strict=True)):
            write_planned_run(folder.run(index), member.plan, settings)
        submit.write_sweep_files(self.members, self.slurm, self.to_run, folder=folder.path)
        return request


def _submit_sweep(wanted: Sweep, *, name: str) -> int:
    """Claim the folder of a sweep and those of its runs, write them, submit them. A dry run leaves them free."""
    path, owner = named_folder(wanted.settings[0]), this_process(submitting=True)
    dry_run = bool(wanted.settings[0].options.dry_run)
    if not dry_run:
        submit.check_size(wanted.members[0].plan, wanted.slurm)
    elif path is not None and read_owner(RunFolder(path)) is not None:
        raise InputError(f"{path} is a sweep already, and a dry run would replace its files: give another run_dir")
    with ExitStack() as claims:
        folder = SweepFolder(claims.enter_context(claimed(path, owner, name=name)).path)
        runs = [folder.run(index) for index in range(len(wanted.members))]
        for run in runs:
            claims.enter_context(claimed(run.path, owner, name=name))
        request = wanted.write(folder)
        job_id = None if dry_run else submit.submit(request)
    say(f"sweep folder: {folder.path} ({len(runs)} runs)")
    if job_id is None:
        for run in (RunFolder(folder.path), *runs):
            withdraw(run, owner, None)
        print(submit.dry_run_text(request, run_folder=folder.path))
        return 0
    for index, run in enumerate(runs):
        hand_to_job(run, owner, f"{job_id}_{index}")
    hand_to_job(RunFolder(folder.path), owner, job_id)
    print(job_id)
    return 0


def program(settings: Settings) -> tuple[str | None, ...]:
    """The user's own program, by each of its keys."""
    return tuple(getattr(settings.options, name) for name in PROGRAM_KEYS)


def other_clusters(plan: Plan, slurm: SlurmSettings) -> dict[str, Cluster]:
    """The clusters that launch.gpu_clusters names, by Slurm's GRES type."""
    found = {}
    for gpu_type, name in slurm.gpu_clusters.items():
        cluster = load([f"cluster={name}", "cluster.num_nodes=1"]).job.cluster
        found[gpu_type] = submit.checked_cluster(cluster, plan, slurm)
    return found


def slurm_of(settings: Settings) -> SlurmSettings:
    """Slurm's settings; raises InputError where a launch file that has none was chosen."""
    if settings.options.slurm is None:
        raise InputError(
            "launch.place=local has no keys of Slurm: leave launch= out, or choose a file that is built on slurm.yaml"
        )
    return settings.options.slurm


def with_slurm(overrides: Sequence[str]) -> list[str]:
    """The overrides, with the launch group's Slurm entry unless another was chosen."""
    chosen = any(word.startswith("launch=") for word in overrides)
    return [*([] if chosen else ["launch=slurm"]), *overrides]
