"""`launcher submit`: plan, write the run folder, hand the job to Slurm; a dry run prints the command instead."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.cluster import Cluster
from launcher.commands.common import checked_settings, work
from launcher.commands.invocation import Invocation
from launcher.commands.prepare import prepare, tell_plan
from launcher.config.compose import load, sweep
from launcher.config.settings import Settings
from launcher.errors import InputError
from launcher.planner import Plan
from launcher.planner.build import make_plan
from launcher.run.folder import SweepFolder, create_run_folder, new_run_folder
from launcher.slurm import submit
from launcher.slurm.settings import SlurmSettings
from launcher.slurm.sweep import SweepMember


def run(invocation: Invocation) -> int:
    """Submit one job and print its id, or with dry_run=true what would run, as text to paste into a shell.

    A dry run writes the run folder too: the command that it prints works as it stands.
    """
    if invocation.multirun:
        return run_sweep(invocation)
    settings = checked_settings(with_slurm(invocation.overrides))
    slurm = slurm_of(settings)
    job = work(settings, invocation.rest)
    plan = make_plan(settings.job, settings.request, settings.config, to_run=True)
    tell_plan(plan)
    for line in (*submit.warnings(plan, slurm, settings.options.launch), *submit.left_behind(slurm)):
        print(f"launcher: {line}", file=sys.stderr)
    to_run = submit.ToRun(job.script, job.args, sys.executable, other_clusters(plan, slurm))
    folder = prepare(plan, settings, name=job.name)
    print(f"run folder: {folder.path}", file=sys.stderr)
    request = submit.prepare(plan, slurm, to_run, run_folder=folder.path)
    if settings.options.dry_run:
        print(submit.dry_run_text(request, run_folder=folder.path))
        return 0
    submit.check_size(plan, slurm)
    print(submit.submit(request, run_folder=folder.path))
    return 0


def run_sweep(invocation: Invocation) -> int:
    """Submit every combination as one job array: one folder, in it one run folder for each, one table of results."""
    combinations = sweep(with_slurm(invocation.overrides))
    every = [checked_settings(words) for words in combinations]
    first = every[0]
    if len({(s.options.launch, repr(s.options.slurm), s.options.script) for s in every}) > 1:
        raise InputError(
            "the runs of one sweep share script= and launch.*: sweep over other keys, or submit them apart"
        )
    slurm = slurm_of(first)
    job = work(first, invocation.rest)
    plans = [make_plan(s.job, s.request, s.config, to_run=True) for s in every]
    to_run = submit.ToRun(job.script, job.args, sys.executable, other_clusters(plans[0], slurm))
    given = first.options.run_dir
    folder = (create_run_folder(Path(given)) if given else new_run_folder(f"{job.name}-sweep")).path
    for index, (settings, plan) in enumerate(zip(every, plans, strict=True)):
        prepare(plan, settings, name=job.name, path=SweepFolder(folder).run(index).path)
    same = set[str](combinations[0]).intersection(*combinations)
    members = [
        SweepMember(tuple(word for word in words if word not in same), plan)
        for words, plan in zip(combinations, plans, strict=True)
    ]
    for line in submit.left_behind(slurm):
        print(f"launcher: {line}", file=sys.stderr)
    print(f"sweep folder: {folder} ({len(members)} runs)", file=sys.stderr)
    request = submit.prepare_sweep(members, slurm, to_run, folder=folder)
    if first.options.dry_run:
        print(submit.dry_run_text(request, run_folder=folder))
    else:
        submit.check_size(plans[0], slurm)
        print(submit.submit_sweep(request, folder=folder, size=len(members)))
    return 0


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
