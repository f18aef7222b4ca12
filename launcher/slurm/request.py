"""Plan and settings → the exact sbatch command. Pure: a dry run shows the same value that a submission runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import InputError
from launcher.planner import Plan
from launcher.run.folder import ARRAY_LOG, SLURM_LOG, RunFolder
from launcher.slurm.settings import SlurmSettings

LONGEST_NAME = 120
OPTION_KEYS = {
    "account": "account",
    "partition": "partition",
    "qos": "qos",
    "time": "time",
    "constraint": "constraint",
    "reservation": "reservation",
    "exclude": "exclude",
    "nodelist": "nodelist",
    "comment": "comment",
    "mail_user": "mail-user",
    "mail_type": "mail-type",
    "switches": "switches",
    "dependency": "dependency",
    "mem": "mem",
}


@dataclass(frozen=True)
class SubmitRequest:
    """One submission: `argv` as sbatch gets it, the variables taken out of its environment, and the script."""

    argv: tuple[str, ...]
    without: tuple[str, ...]
    script: Path

    def environment(self, inherited: dict[str, str]) -> dict[str, str]:
        """The environment that sbatch runs in, and with launch.export=all the job as well."""
        return {name: value for name, value in inherited.items() if name not in self.without}

    def as_shell(self) -> str:
        """The command as text to paste into a shell."""
        words = [shlex.quote(word) for word in self.argv]
        remove = "".join(f"-u {shlex.quote(name)} " for name in self.without)
        command = f"env {remove}{words[0]}" if remove else words[0]
        return " \\\n  ".join([command, *words[1:]])


@dataclass(frozen=True)
class Where:
    """What a request needs to know of this machine: absolute paths, and the interpreter that runs the job's driver."""

    run_folder: Path
    script: Path
    python: str


def submit_request(
    plan: Plan, settings: SlurmSettings, where: Where, *, without: Sequence[str] = (), array_size: int | None = None
) -> SubmitRequest:
    """The sbatch command of a plan. With `array_size`, one job array over the run folder's subfolders 0, 1, ….

    Raises InputError where plan and settings contradict each other.
    """
    if settings.container.runtime != "bare" and set(":,") & set(str(where.run_folder)):
        raise InputError(f"a container cannot mount {where.run_folder}: choose a run_dir without ':' or ','")
    options = [
        f"--job-name={job_name(settings.job_name or where.run_folder.name)}",
        *_resources(plan, settings),
        *(f"--{option}={getattr(settings, key)}" for key, option in OPTION_KEYS.items() if getattr(settings, key)),
        *(["--exclusive"] if settings.exclusive else []),
        *(["--no-kill"] if settings.spares else []),
        f"--signal=B:{settings.signal}@{settings.signal_lead_s}",
        "--requeue" if settings.requeue else "--no-requeue",
        f"--chdir={where.run_folder}",
        f"--output={_log_folder(where)}/{ARRAY_LOG if array_size else SLURM_LOG}",
        "--open-mode=append",
        *_export(settings),
        *([f"--array=0-{array_size - 1}{_limit(settings)}"] if array_size else []),
        *settings.extra,
    ]
    argv = ("sbatch", "--parsable", *options, str(where.script), str(where.run_folder), where.python)
    return SubmitRequest(argv, tuple(without), where.script)


def job_name(name: str) -> str:
    """A name that every Slurm tool shows on one line."""
    printable = "".join(c if c.isprintable() else "_" for c in name)
    return printable[:LONGEST_NAME] or "launcher"


def _export(settings: SlurmSettings) -> list[str]:
    """Nothing for the whole environment, which is Slurm's default; else nothing but the secrets that the job may have.

    The values stay in the environment: sbatch takes names.
    """
    return [f"--export={','.join(settings.secrets) or 'NONE'}"] if settings.export == "none" else []


def _log_folder(where: Where) -> str:
    """The folder of logs as Slurm's patterns want it: a percent sign doubled. A backslash cannot be written at all."""
    if "\\" in str(where.run_folder):
        raise InputError(f"Slurm cannot write a log under {where.run_folder}: choose a run_dir without a backslash")
    return str(RunFolder(where.run_folder).logs).replace("%", "%%")


def _limit(settings: SlurmSettings) -> str:
    return f"%{settings.array_limit}" if settings.array_limit else ""


def _resources(plan: Plan, settings: SlurmSettings) -> list[str]:
    """Nodes, one task on each, its GPUs and cores: from the plan and the cluster file, never guessed."""
    nodes = plan.placement.num_nodes
    wanted = _nodes(nodes, settings)
    # One task a node is Slurm's default. Said aloud, a range of nodes would count as tasks of its lower end only.
    options = [f"--nodes={wanted}", *(["--ntasks-per-node=1"] if "-" not in wanted else [])]
    gpus = gpus_per_node(plan, settings)
    if gpus:
        options.append(f"--gpus-per-node={settings.gpu_type + ':' if settings.gpu_type else ''}{gpus}")
    cpus = cpus_per_task(plan, settings)
    if cpus:
        options.append(f"--cpus-per-task={cpus}")
    return options


def _nodes(nodes: int, settings: SlurmSettings) -> str:
    if settings.replan == "never" and settings.min_nodes:
        raise InputError(
            f"launch.min_nodes={settings.min_nodes} needs launch.replan=shrink or any: with never the job takes "
            f"exactly the {nodes} nodes of its plan"
        )
    if (settings.min_nodes or 1) > nodes:
        raise InputError(f"launch.min_nodes={settings.min_nodes} is more than the {nodes} nodes of the plan: lower it")
    fewest, most = settings.fewest_nodes(nodes), nodes + settings.spares
    return str(nodes) if fewest == most else f"{fewest}-{most}"


def gpus_per_node(plan: Plan, settings: SlurmSettings) -> int:
    """GPUs to ask for on each node: as many as the plan puts ranks there; none on a CPU cluster."""
    if settings.gpus_per_node is not None:
        return settings.gpus_per_node
    return plan.placement.ranks_per_node if plan.job.cluster.node.gpu.kind == "cuda" else 0


def cpus_per_task(plan: Plan, settings: SlurmSettings) -> int:
    """Cores of a node's task: the node's cores (cluster file) shared by GPU; 0 where the file does not say."""
    node = plan.job.cluster.node
    per_gpu = settings.cpus_per_gpu if settings.cpus_per_gpu is not None else node.cores // node.num_gpus
    return per_gpu * plan.placement.ranks_per_node
