"""Submits a plan to Slurm, or prints the exact command: the effects around launcher/slurm/request.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher import env
from launcher.agent.launch import Launch, write_launch
from launcher.agent.settings import LaunchSettings
from launcher.cluster import Cluster
from launcher.errors import InputError
from launcher.files import write_text
from launcher.planner import Plan
from launcher.planner.record import RECIPE
from launcher.resources import resource
from launcher.run.folder import RunFolder
from launcher.secret import secrets_in
from launcher.slurm.command import ask
from launcher.slurm.environment import kept_from_sbatch, left_behind_text, secrets_text
from launcher.slurm.record import setup_text
from launcher.slurm.request import SubmitRequest, Where, cpus_per_task, submit_request
from launcher.slurm.settings import PROGRESS, SlurmSettings, time_limit_s
from launcher.slurm.sweep import SweepMember, sweep_request
from launcher.text import whole_number

THIS_MACHINE = "cpu"  # the default of cluster=


def make_request(plan: Plan, settings: SlurmSettings, *, run_folder: Path) -> SubmitRequest:
    """Return the command to run; raises InputError if the plan cannot be submitted with these settings."""
    where = Where(run_folder.absolute(), batch_script(), sys.executable)
    return submit_request(plan, settings, where, without=_removed(settings))


def make_sweep_request(members: Sequence[SweepMember], settings: SlurmSettings, *, folder: Path) -> SubmitRequest:
    """As `make_request`, for a sweep with its runs in `folder`/0, `folder`/1, …"""
    where = Where(folder.absolute(), batch_script(), sys.executable)
    return sweep_request(members, settings, where, without=_removed(settings))


def _removed(settings: SlurmSettings) -> tuple[str, ...]:
    """Return variables of this shell that sbatch must not get; raises InputError if a requested secret is missing."""
    missing = [name for name in settings.secrets if env.get(name) is None]
    if missing:
        raise InputError(f"launch.secrets names {', '.join(missing)}, which your shell does not have: export it first")
    here = env.environment()
    return (*secrets_in(here, wanted=settings.secrets), *kept_from_sbatch(here))


def left_behind(settings: SlurmSettings) -> list[str]:
    """Describe what the job does not get from this shell: one line for secrets, one for variables of other jobs."""
    here = env.environment()
    secrets, others = secrets_in(here, wanted=settings.secrets), kept_from_sbatch(here)
    lines = [secrets_text(secrets)] if secrets and settings.export == "all" else []
    return lines + ([left_behind_text(others, in_job=env.get("SLURM_JOB_ID"))] if others else [])


def checked_cluster(other: Cluster, plan: Plan, settings: SlurmSettings) -> Cluster:
    """Return a cluster of launch.gpu_clusters with the requested GPUs and cores per node.

    Raises InputError if its nodes have another number of GPUs.
    """
    asked = plan.placement.ranks_per_node
    if other.node.num_gpus != asked:
        raise InputError(
            f"launch.gpu_clusters: {other.name} has {other.node.num_gpus} GPUs per node, but the job asks every node "
            f"for {asked}: name a cluster file with nodes that have {asked}"
        )
    return replace(other, node=replace(other.node, cores=cpus_per_task(plan, settings)))


def warnings(plan: Plan, settings: SlurmSettings, launch: LaunchSettings) -> list[str]:
    """Return warnings about what will not work as expected, although Slurm accepts the job."""
    found = []
    ours = plan.kind == RECIPE
    if settings.comes_back and ours and not plan.options.train.checkpoint_every:
        found.append(
            "train.checkpoint_every=0: nothing is saved, so a job that reaches its time limit is not requeued; "
            "set it to a number of steps"
        )
    if not ours and settings.requeue == PROGRESS and settings.progress is None and not _uses_session(plan):
        found.append(
            "nothing would bring this job back at its time limit: it is requeued where it shows progress; name where "
            "it saves by launch.progress=FOLDER, or set launch.requeue=always"
        )
    if not ours and plan.job.cluster.name == THIS_MACHINE and settings.gpus_per_node is None:
        found.append(
            f"the job asks Slurm for no GPU, for cluster={THIS_MACHINE} has none: name yours by cluster= (`launcher "
            "discover` writes it), or set launch.gpus_per_node=N"
        )
    if settings.signal not in {number.name.removeprefix("SIG") for number in launch.stop_signals}:
        found.append(
            f"launch.stop_signals lacks {settings.signal}, which launch.signal sends: the ranks would not follow it"
        )
    if launch.grace_s >= settings.signal_lead_s:
        found.append(
            f"launch.grace_s={launch.grace_s:g} is no shorter than launch.signal_lead_s={settings.signal_lead_s}: "
            "the time limit may cut a checkpoint off"
        )
    if settings.time and settings.comes_back and 2 * settings.signal_lead_s > time_limit_s(settings.time):
        found.append(
            f"launch.signal_lead_s={settings.signal_lead_s} takes most of launch.time={settings.time}: each start "
            "would be requeued soon after it began; shorten it, and launch.grace_s with it"
        )
    return found


def _uses_session(plan: Plan) -> bool:
    """Return whether a script uses our session: its checkpoints count as progress."""
    own = plan.options.program
    try:
        return own is not None and b"launcher.worker" in Path(own.target).read_bytes()
    except OSError:
        return False  # a module


def write_launch_files(folder: RunFolder, launch: Launch, settings: SlurmSettings) -> None:
    """Write launch.json, and setup.sh if there is something to set up."""
    write_launch(launch, folder.launch)
    if settings.setup:
        write_text(folder.setup, setup_text(settings.setup))


def batch_script() -> Path:
    """Return the static batch script that every submission uses."""
    return resource("slurm") / "train.sbatch"


def check_size(plan: Plan, settings: SlurmSettings) -> None:
    """Raise InputError if no partition has as many nodes as the job needs: Slurm would let it wait forever."""
    rows = [line.rpartition("|") for line in ask(("sinfo", "-h", "-o", "%R|%D")).out.splitlines()]
    sizes = {name: size for name, _, count in rows if (size := whole_number(count)) is not None}
    wanted = [settings.partition] if settings.partition else list(sizes)
    known = {name: sizes[name] for name in wanted if name in sizes}
    needed = settings.fewest_nodes(plan.placement.num_nodes)
    if known and needed > max(known.values()):
        there = ", ".join(f"{name} has {size}" for name, size in known.items())
        raise InputError(f"the job needs {needed} nodes ({there}): set cluster.num_nodes, or launch.partition")


def submit(request: SubmitRequest) -> str:
    """Run sbatch and return the job id. Raises InputError with Slurm's reason."""
    answer = ask(request.argv, environment=request.environment(env.environment()))
    if answer.code:
        raise InputError(f"Slurm refused the job ({answer.reason}): {_way_out(answer.reason)}")
    return answer.out.strip().partition(";")[0]


def _way_out(reason: str) -> str:
    """Return what to do about a refusal, with the available choices if that helps."""
    if "partition" in reason.lower():
        there = ask(("sinfo", "-h", "-o", "%R")).out.split()
        return f"set launch.partition to one of {', '.join(dict.fromkeys(there)) or 'those that sinfo shows'}"
    if "node" in reason.lower():
        rows = [line.split("|") for line in ask(("sinfo", "-h", "-e", "-o", "%R|%D|%c|%G")).out.splitlines()]
        there = [f"{row[0]}: {row[1]} nodes with {row[2]} cores and {row[3]}" for row in rows if len(row) == 4]
        return f"ask for nodes that exist ({'; '.join(there) or 'sinfo shows them'}), or choose another cluster="
    return "correct what it names under launch.*; dry_run=true prints the command"


def dry_run_text(request: SubmitRequest, *, run_folder: Path) -> str:
    """Return what a submission would run, to paste into a shell: the command, then both scripts as comments."""
    parts = [request.as_shell()]
    for path in (request.script, RunFolder(run_folder).setup):
        if path.exists():
            body = "".join(
                f"#   {line}".rstrip() + os.linesep for line in path.read_text(encoding="utf-8").splitlines()
            )
            parts.append(f"# {_one_line(path)}:\n{body}")
    return "\n\n".join(parts)


def _one_line(path: Path) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(path))
