"""The srun command that starts one agent on every node of a plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster.hostlist import compress_hostlist
from launcher.planner import Plan
from launcher.slurm.request import cpus_per_task, gpus_per_node
from launcher.slurm.settings import Container, SlurmSettings

AGENT = "launcher.slurm.node"
CHECK = "launcher.slurm.check"


@dataclass(frozen=True)
class Step:
    """One task per node.

    `module` runs with the run folder as its argument, on `num_nodes` nodes: on `hosts`, if not on all of the job's.
    `cpus`: CPUs of the job on each node; 0: unknown.
    `shares`: an old step on a lost node may still hold the job's cores and GPUs.
    """

    run_folder: Path
    work_dir: str
    script: str
    python: str
    num_nodes: int
    cpus: int = 0
    module: str = AGENT
    hosts: tuple[str, ...] = ()
    shares: bool = False


def step_argv(plan: Plan, settings: SlurmSettings, step: Step) -> tuple[str, ...]:
    """Return the srun command for one task per node, which runs the node's agent, in the container if there is one.

    No GPU binding: every process of a node sees all its GPUs, which keeps NVLink usable. The agents end each other when
    one fails; --wait covers one that can no longer do so.
    """
    wanted = cpus_per_task(plan, settings)  # a job submitted by hand may have fewer, or an unknown number
    cpus = min(wanted or step.cpus, step.cpus or wanted)
    return (
        "srun",
        f"--nodes={step.num_nodes}",
        f"--ntasks={step.num_nodes}",
        "--ntasks-per-node=1",
        *([f"--nodelist={compress_hostlist(step.hosts)}"] if step.hosts else []),
        *(["--overlap"] if step.shares else []),
        *(["--label"] if step.module == CHECK else []),  # the driver needs to know which task printed a line
        "--export=ALL",
        "--kill-on-bad-exit=0",
        "--wait=120",
        *([f"--cpus-per-task={cpus}"] if cpus else []),
        *(["--gpu-bind=none"] if gpus_per_node(plan, settings) else []),
        f"--chdir={step.work_dir}",
        *_task(settings, step, gpus=plan.job.cluster.node.gpu.kind == "cuda"),
    )


def rank_variables(settings: SlurmSettings) -> dict[str, str]:
    """Return launch.environment for srun: in apptainer an image's value wins unless it gets a special variable."""
    forced = {f"APPTAINERENV_{name}": value for name, value in settings.environment.items()}
    return {**settings.environment, **(forced if settings.container.runtime == "apptainer" else {})}


def _task(settings: SlurmSettings, step: Step, *, gpus: bool) -> Sequence[str]:
    """Return the agent's command, on the bare node or in the image."""
    agent = ["-P", "-m", step.module, str(step.run_folder)]  # -P: do not import a launcher.py in the job's folder
    container = settings.container
    if container.runtime == "pyxis":
        return [*_pyxis(container, step, settings.environment), container.python, *agent]
    if container.runtime == "apptainer":
        binds = [f"--bind={mount}" for mount in _mounts(container, step)]
        device = ["--nv"] if gpus else []
        image = str(container.image)
        options = [*device, *binds, f"--pwd={step.work_dir}", *container.options]
        return ["apptainer", "exec", *options, image, container.python, *agent]
    return [step.python, *agent]


def _pyxis(container: Container, step: Step, environment: Mapping[str, str]) -> list[str]:
    """Return srun's options for pyxis: https://github.com/NVIDIA/pyxis#usage.

    An image's own value of a variable wins, unless --container-env names it.
    """
    return [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(_mounts(container, step))}",
        f"--container-workdir={step.work_dir}",
        *([f"--container-env={','.join(environment)}"] if environment else []),
        *container.options,
    ]


def _mounts(container: Container, step: Step) -> list[str]:
    """Return mounts of run folder, working folder and script folder, at their own paths, then the user's."""
    own = [str(step.run_folder), step.work_dir]
    folder = Path(step.script).parent  # modules and recipes are in the image: nothing to mount
    if folder.is_absolute() and not any(folder.is_relative_to(path) for path in own):
        own.append(str(folder))
    return [*(f"{path}:{path}" for path in own), *container.mounts]
