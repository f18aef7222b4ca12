"""Plan and settings → the exact sbatch command. Pure: a dry run prints the same value that a submission runs."""

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
    """One submission: sbatch's `argv`, the variables removed from its environment, and the script."""

    argv: tuple[str, ...]
    without: tuple[str, ...]
    script: Path

    def environment(self, inherited: dict[str, str]) -> dict[str, str]:
        """Return the environment of sbatch, and with launch.export=all also of the job."""
        return {name: value for name, value in inherited.items() if name not in self.without}

    def as_shell(self) -> str:
        """Return the command as text to paste into a shell."""
        words = [shlex.quote(word) for word in self.argv]
        remove = "".join(f"-u {shlex.quote(name)} " for name in self.without)
        command = f"env {remove}{words[0]}" if remove else words[0]
        return " \\\n  ".join([command, *words[1:]])


@dataclass(frozen=True)
class Where:
    """The machine's part of a request: absolute paths, and the interpreter of the job's driver."""

    run_folder: Path
    script: Path
    python: str


def submit_request(
    plan: Plan, settings: SlurmSettings, where: Where, *, without: Sequence[str] = (), array_size: int | None = None
) -> SubmitRequest:
    """Return the sbatch command of a plan. With `array_size`, one job array over the run folder's subfolders 0, 1, ….

    Raises InputError if plan and settings contradict each other.
    """
    check_equal_nodes(plan)
    if settings.container.runtime != "bare" and set(":,") & set(str(where.run_folder)):
        raise InputError(f"a container cannot mount {where.run_folder}: choose a run_dir without ':' or ','")
    options = [
        f"--job-name={job_name(settings.job_name or where.run_folder.name)}",
        *_resources(plan, settings),
        *(f"--{option}={getattr(settings, key)}" for key, option in OPTION_KEYS.items() if getattr(settings, key)),
        *(["--exclusive"] if settings.exclusive else []),
        *(["--no-kill"] if settings.spares else []),
        f"--signal=B:{settings.signal}@{settings.signal_lead_s}",
        "--requeue" if settings.comes_back else "--no-requeue",
        f"--chdir={where.run_folder}",
        f"--output={_log_folder(where)}/{ARRAY_LOG if array_size else SLURM_LOG}",
        "--open-mode=append",
        *_export(settings),
        *([f"--array=0-{array_size - 1}{_limit(settings)}"] if array_size else []),
        *settings.extra,
    ]
    argv = ("sbatch", "--parsable", *options, str(where.script), str(where.run_folder), where.python)
    return SubmitRequest(argv, tuple(without), where.script)


def check_equal_nodes(plan: Plan) -> None:
    """Raise InputError for a plan that gives its nodes different numbers of ranks: Slurm gives each as many GPUs."""
    if each := plan.options.node_ranks:
        raise InputError(
            f"the plan gives its nodes {', '.join(map(str, each))} ranks, and Slurm gives every node of a job as many "
            "GPUs (--gpus-per-node): plan it for equal nodes, or start it by launch=ssh, in an allocation too"
        )


def job_name(name: str) -> str:
    """Return a name that every Slurm tool shows on one line."""
    printable = "".join(c if c.isprintable() else "_" for c in name)
    return printable[:LONGEST_NAME] or "launcher"


def _export(settings: SlurmSettings) -> list[str]:
    """Return the export option: none for the whole environment, Slurm's default; else only the allowed secrets.

    The values stay in the environment: sbatch gets names.
    """
    return [f"--export={','.join(settings.secrets) or 'NONE'}"] if settings.export == "none" else []


def _log_folder(where: Where) -> str:
    """Return the folder of logs for Slurm's patterns, with percent signs doubled. A backslash cannot be expressed."""
    if "\\" in str(where.run_folder):
        raise InputError(f"Slurm cannot write a log under {where.run_folder}: choose a run_dir without a backslash")
    return str(RunFolder(where.run_folder).logs).replace("%", "%%")


def _limit(settings: SlurmSettings) -> str:
    return f"%{settings.array_limit}" if settings.array_limit else ""


def _resources(plan: Plan, settings: SlurmSettings) -> list[str]:
    """Return options for nodes, one task per node, GPUs and cores, from the plan and the cluster file."""
    nodes = plan.placement.num_nodes
    wanted = _nodes(nodes, settings)
    # One task per node is Slurm's default. If set explicitly, a range of nodes would get tasks for its lower end only.
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
    """Return the GPUs to request per node: the plan's ranks per node; none on a CPU cluster."""
    if settings.gpus_per_node is not None:
        return settings.gpus_per_node
    return plan.placement.ranks_per_node if plan.job.cluster.node.gpu.kind == "cuda" else 0


def cpus_per_task(plan: Plan, settings: SlurmSettings) -> int:
    """Return the cores of a node's task: the node's cores (cluster file) in proportion to GPUs; 0 if unknown."""
    node = plan.job.cluster.node
    per_gpu = settings.cpus_per_gpu if settings.cpus_per_gpu is not None else node.cores // node.num_gpus
    return per_gpu * plan.placement.ranks_per_node
