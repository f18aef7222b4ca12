"""`launcher run` in a shell that has nodes from Slurm (salloc, a batch script of the user's): it uses these nodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.commands.claim import may_claim
from launcher.commands.common import checked_settings
from launcher.commands.given_plan import named_folder
from launcher.commands.invocation import Invocation
from launcher.commands.prepare import check_inputs, say_plan, say_variables, warn_of_locks, write_run
from launcher.commands.submit import BatchJob, batch_job, with_slurm
from launcher.console import notify, say
from launcher.faststart.overlapped_import import Order
from launcher.run.folder import RUNS, RunFolder
from launcher.run.owner import Owner
from launcher.slurm.allocation import read_allocation
from launcher.slurm.start import settings_here, step_text

COUNTS = ("cluster.num_nodes=", "launch.nnodes=", "plan=")  # what says how many nodes


def order(invocation: Invocation, owner: Owner) -> Order | None:
    """Plan a job for the nodes of this allocation and write its run folder for `owner`; None for a dry run.

    Raises InputError, and has then written nothing.
    """
    allocation = read_allocation()
    words = _with_nodes(invocation.overrides, len(allocation.hosts))
    settings = checked_settings(words)
    path = named_folder(settings)
    if path is not None:
        may_claim(path, owner)
    job = batch_job(settings, words, invocation.rest)
    settings_here(job.slurm, job.plan, allocation)
    job.check_used(invocation.overrides, in_allocation=True)
    check_inputs(job.plan)
    say_plan(job.plan)
    notify(f"it runs on the nodes of job {allocation.job_id}; launch=local runs it on this machine")
    if settings.options.dry_run:
        _say_dry_run(job, path)
        return None
    warn_of_locks(job.plan)
    return write_run(job.run, job.launch, invocation, owner)


def _with_nodes(overrides: Sequence[str], num_nodes: int) -> list[str]:
    """The overrides for Slurm, with as many nodes as there are unless they, or a plan that is there, say how many."""
    words = with_slurm(overrides)
    folders = [word.partition("=")[2] for word in words if word.startswith("run_dir=")]
    planned = any(RunFolder(Path(folder)).plan.is_file() for folder in folders)
    said = planned or any(word.lstrip("+~").startswith(COUNTS) for word in words)
    return words if said else [*words, f"launch.nnodes={num_nodes}"]


def _say_dry_run(job: BatchJob, path: Path | None) -> None:
    say_variables(job.plan)
    say(step_text(job.plan, job.launch, RunFolder((path or RUNS / "NAME").absolute()), job.slurm))
    say("dry run: nothing was started")
