"""The srun command that starts one agent on every node of the job. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.launch.slurm.request import cpus_per_task, gpus_per_node
from launcher.launch.slurm.settings import Container, SlurmSettings
from launcher.plan import Plan

AGENT = "launcher.launch.slurm.node"
CHECK = "launcher.launch.slurm.check"
COORDINATOR = "LAUNCHER_COORDINATOR"  # address of the plan's first node, for the agents


def step_argv(
    plan: Plan, settings: SlurmSettings, *, run_folder: Path, work_dir: str, python: str, module: str = AGENT
) -> tuple[str, ...]:
    """One task a node over all nodes of the plan, which runs the node's agent, in the container where there is one.

    No GPU binding: every process of a node sees all its GPUs, and with them NVLink. The agents end each other when one
    fails; --wait is for one that can no longer do so.
    """
    nodes, cpus = plan.placement.num_nodes, cpus_per_task(plan, settings)
    return (
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        "--export=ALL",
        "--kill-on-bad-exit=0",
        "--wait=120",
        *([f"--cpus-per-task={cpus}"] if cpus else []),
        *(["--gpu-bind=none"] if gpus_per_node(plan, settings) else []),
        f"--chdir={work_dir}",
        *_task(
            settings.container,
            ["-m", module, str(run_folder)],
            mounts=[f"{run_folder}:{run_folder}", f"{work_dir}:{work_dir}", *settings.container.mounts],
            work_dir=work_dir,
            python=python,
            gpus=plan.job.cluster.node.gpu.kind == "cuda",
        ),
    )


def _task(
    container: Container, agent: Sequence[str], *, mounts: Sequence[str], work_dir: str, python: str, gpus: bool
) -> Sequence[str]:
    """The agent's command, on the bare node or in the image."""
    if container.runtime == "pyxis":
        options = [f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}", *container.options]
        return [*options, f"--container-workdir={work_dir}", container.python, *agent]
    if container.runtime == "apptainer":
        binds = [f"--bind={mount}" for mount in mounts]
        device = ["--nv"] if gpus else []
        return [
            "apptainer", "exec", *device, *binds, f"--pwd={work_dir}", *container.options,
            str(container.image), container.python, *agent,
        ]  # fmt: skip
    return [python, *agent]
