"""`launcher submit`: plan, write the run folder, submit the job to Slurm; a dry run prints the command instead."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from launcher.agent.launch import Launch, is_submitted
from launcher.cluster import Cluster
from launcher.commands.again import repeated
from launcher.commands.claim import claimed, may_claim
from launcher.commands.common import checked_settings
from launcher.commands.given_plan import given_keys, merged, named_folder
from launcher.commands.invocation import Invocation
from launcher.commands.prepare import PlannedRun, launch_settings, plan_run, say_plan, say_variables
from launcher.commands.unused_keys import PlannedStart, check_used
from launcher.config.compose import load, sweep
from launcher.config.settings import Settings
from launcher.console import notify, say
from launcher.errors import InputError
from launcher.planner import Plan
from launcher.run.folder import RunFolder, SweepFolder
from launcher.run.owner import Owner, hand_to_job, read_owner, this_process, withdraw
from launcher.run.provenance import write_provenance
from launcher.slurm import submit
from launcher.slurm.record import SlurmLaunch, read_slurm_launch, slurm_launch
from launcher.slurm.request import SubmitRequest, gpus_per_node
from launcher.slurm.settings import SlurmSettings
from launcher.slurm.sweep import SweepMember, write_sweep


def run(invocation: Invocation) -> int:
    """Submit one job and print its id; with dry_run=true print the command to paste into a shell.

    A dry run also writes its run folder, so that the command works unchanged; it never writes into an existing run.
    """
    invocation = repeated(invocation)
    if invocation.multirun:
        return run_sweep(invocation)
    settings = checked_settings(with_slurm(invocation.overrides))
    if slurm_of(settings).login:
        from launcher.commands.login import submit_there  # and with it ssh, which no other submission needs

        return submit_there(invocation, settings, slurm_of(settings))
    path, owner = named_folder(settings), this_process(submitting=True)
    if path is not None and not settings.options.dry_run:
        may_claim(path, owner)
    job = batch_job(settings, invocation.overrides, invocation.rest)
    job.check_used(invocation.overrides)
    say_plan(job.plan)
    for line in (*submit.warnings(job.plan, job.slurm, job.launch.settings), *submit.left_behind(job.slurm)):
        notify(line)
    if settings.options.dry_run:
        say_variables(job.plan)
        return _dry_run(job, owner, as_json=settings.options.output == "json")
    submit.check_size(job.plan, job.slurm)
    with claimed(path, owner, name=job.run.name) as folder:
        request = job.write(folder)
        write_provenance(folder, invocation.overrides, invocation.rest)
        job_id = submit.submit(request)
    hand_to_job(folder, owner, job_id)
    say(f"run folder: {folder.path}")
    _answer(request, folder.path, job_id, as_json=settings.options.output == "json")
    return 0


def _answer(
    request: SubmitRequest, folder: Path, job_id: str | None, *, as_json: bool, num_runs: int | None = None
) -> None:
    """Print the job's id, of a dry run the command: as text, or as one document."""
    if as_json:
        document = {"job_id": job_id, "run_folder": str(folder), "argv": list(request.argv), "num_runs": num_runs or 1}
        print(json.dumps({**document, "dry_run": job_id is None}))
    else:
        print(job_id or submit.dry_run_text(request, run_folder=folder))


@dataclass(frozen=True)
class BatchJob:
    """A job that is ready to be written and submitted."""

    run: PlannedRun
    launch: Launch
    slurm: SlurmSettings

    @property
    def plan(self) -> Plan:
        return self.run.plan

    def check_used(self, overrides: Sequence[str], *, in_allocation: bool = False, sweep: bool = False) -> None:
        """See `unused_keys.check_used`."""
        start = PlannedStart(
            plan=self.plan,
            launch=self.launch.settings,
            slurm=self.slurm,
            num_gpus=gpus_per_node(self.plan, self.slurm),
            in_allocation=in_allocation,
            sweep=sweep,
        )
        check_used(start, overrides)

    def write(self, folder: RunFolder) -> SubmitRequest:
        """Write what the job reads; return the command that submits it."""
        request = submit.make_request(self.plan, self.slurm, run_folder=folder.path)
        submit.write_launch_files(folder, self.run.write(folder, self.launch), self.slurm)
        return request


def batch_job(settings: Settings, overrides: Sequence[str], args: Sequence[str]) -> BatchJob:
    """Plan a job, or take an existing plan, and add its Slurm settings."""
    run = plan_run(settings, overrides, args)
    slurm = _slurm_settings(settings, overrides, run.path)
    settings_of_launch = launch_settings(settings, overrides, run.path)
    launch = slurm_launch(settings_of_launch, SlurmLaunch(settings=slurm, clusters=other_clusters(run.plan, slurm)))
    return BatchJob(run, launch, slurm)


def _slurm_settings(settings: Settings, overrides: Sequence[str], path: Path | None) -> SlurmSettings:
    """Return Slurm's settings: as given, otherwise as at the last submission of this folder."""
    given = slurm_of(settings)
    if path is None or not is_submitted(path):
        return given
    before = read_slurm_launch(RunFolder(path))[1].settings
    return merged(before, given, "launch", given_keys(overrides))


def _dry_run(job: BatchJob, owner: Owner, *, as_json: bool) -> int:
    """Print the command. In an unused folder also write what it reads, and leave the folder unclaimed."""
    path = job.run.path
    if path is not None and read_owner(RunFolder(path)) is not None:
        request = submit.make_request(job.plan, job.slurm, run_folder=path)
        say(f"dry run: {path} is an existing run and is not changed; its files do not match this command")
        _answer(request, path, None, as_json=as_json)
        return 0
    with claimed(path, owner, name=job.run.name) as folder:
        request = job.write(folder)
    withdraw(folder, owner, None)
    say(f"run folder: {folder.path}")
    _answer(request, folder.path, None, as_json=as_json)
    return 0


def run_sweep(invocation: Invocation) -> int:
    """Submit every combination as one job array: one folder, in it a run folder for each, one table of results."""
    combinations = sweep(with_slurm(invocation.overrides))
    every = [checked_settings(words) for words in combinations]
    first = every[0]
    if slurm_of(first).login:
        raise InputError("launch.login submits one job at a time: leave -m out, or submit the sweep on the login node")
    if len({(repr(s.options.launch), repr(s.options.slurm), s.options.own_program) for s in every}) > 1:
        raise InputError(
            "the runs of one sweep share script=, module=, program= and launch.*: sweep over other keys, or submit "
            "them apart"
        )
    if first.options.plan is not None:
        raise InputError("plan= is one job, but a sweep plans several: leave plan= out, or submit without -m")
    without_folder = [[word for word in words if not word.startswith("run_dir=")] for words in combinations]
    jobs = [batch_job(load(words), words, invocation.rest) for words in without_folder]
    jobs[0].check_used(combinations[0], sweep=True)
    same = set[str](combinations[0]).intersection(*combinations)
    members = [
        SweepMember(tuple(word for word in words if word not in same), job.plan)
        for words, job in zip(combinations, jobs, strict=True)
    ]
    for line in submit.left_behind(jobs[0].slurm):
        notify(line)
    return _submit_sweep(Sweep(jobs, members), first)


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, and what differs between them."""

    jobs: Sequence[BatchJob]
    members: Sequence[SweepMember]

    def write(self, folder: SweepFolder) -> SubmitRequest:
        """Write what the jobs read; return the command that submits them."""
        first = self.jobs[0]
        request = submit.make_sweep_request(self.members, first.slurm, folder=folder.path)
        for index, job in enumerate(self.jobs):
            job.write(folder.run(index))
        submit.write_launch_files(RunFolder(folder.path), first.launch, first.slurm)
        write_sweep(folder.path, self.members)
        return request


def _submit_sweep(wanted: Sweep, settings: Settings) -> int:
    """Claim the folders of a sweep and of its runs, write and submit them. A dry run leaves them unclaimed."""
    path, owner = named_folder(settings), this_process(submitting=True)
    dry_run, first = settings.options.dry_run, wanted.jobs[0]
    name = f"{first.run.name}-sweep"
    if not dry_run:
        submit.check_size(first.plan, first.slurm)
    elif path is not None and read_owner(RunFolder(path)) is not None:
        raise InputError(f"{path} is an existing sweep, and a dry run would replace its files: choose another run_dir")
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
    else:
        for index, run in enumerate(runs):
            hand_to_job(run, owner, f"{job_id}_{index}")
        hand_to_job(RunFolder(folder.path), owner, job_id)
    as_json = settings.options.output == "json"
    _answer(request, folder.path, job_id, as_json=as_json, num_runs=len(runs))
    return 0


def other_clusters(plan: Plan, slurm: SlurmSettings) -> dict[str, Cluster]:
    """Return the clusters that launch.gpu_clusters names, by Slurm's GRES type."""
    found = {}
    for gpu_type, name in slurm.gpu_clusters.items():
        cluster = load([f"cluster={name}", "cluster.num_nodes=1"]).job.cluster
        found[gpu_type] = submit.checked_cluster(cluster, plan, slurm)
    return found


def slurm_of(settings: Settings) -> SlurmSettings:
    """Return Slurm's settings; raises InputError if the chosen launch file has none."""
    if settings.options.slurm is None:
        raise InputError(
            f"launch.place={settings.options.launch.place} is not Slurm, and `launcher submit` submits to Slurm: leave "
            "launch= out, choose a file based on slurm.yaml, or use `launcher run`"
        )
    return settings.options.slurm


def with_slurm(overrides: Sequence[str]) -> list[str]:
    """Return the overrides, with launch=slurm unless another entry was chosen."""
    chosen = any(word.startswith("launch=") for word in overrides)
    return [*([] if chosen else ["launch=slurm"]), *overrides]
