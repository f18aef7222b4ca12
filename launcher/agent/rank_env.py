"""The environment of a rank: torchrun's variables and ours. Pure: nothing here reads or sets variables.

Ours, for scripts that need their placement without reading plan.json:

    LAUNCHER_RUN_DIR, LAUNCHER_PLAN       paths of the run folder, and of the plan of this round in it
    LAUNCHER_{TP,PP,DP,CP}                degree of each axis, for scripts that do not read the plan
    LAUNCHER_HEARTBEAT_FD                     descriptor of the node's heartbeats (launcher/run/heartbeat.py)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher import env
from launcher.agent.fabric_variables import Variable, fabric_variables
from launcher.layout.degrees import degree_variables
from launcher.planner.record import Plan

NCCL_PIPE_STEM = "nccl-ask-"


@dataclass(frozen=True)
class RankAssignment:
    """One rank's assignment in one start of the job, by the rendezvous."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node: int
    num_nodes: int
    master_addr: str
    master_port: int
    restarts: int
    max_restarts: int
    run_id: str
    error_file: Path | None = None


def torchrun_variables(assignment: RankAssignment) -> dict[str, str]:
    """Return the variables that torchrun sets for every rank (torch 2.13, torch/distributed/run.py).

    `error_file`: where `torch.distributed.elastic.multiprocessing.errors.record` writes an exception.
    """
    error_file = {} if assignment.error_file is None else {"TORCHELASTIC_ERROR_FILE": str(assignment.error_file)}
    return {
        "RANK": str(assignment.rank),
        "WORLD_SIZE": str(assignment.world_size),
        "LOCAL_RANK": str(assignment.local_rank),
        "LOCAL_WORLD_SIZE": str(assignment.local_world_size),
        "GROUP_RANK": str(assignment.node),
        "GROUP_WORLD_SIZE": str(assignment.num_nodes),
        "ROLE_RANK": str(assignment.rank),
        "ROLE_WORLD_SIZE": str(assignment.world_size),
        "ROLE_NAME": "default",
        "MASTER_ADDR": assignment.master_addr,
        "MASTER_PORT": str(assignment.master_port),
        "TORCHELASTIC_RESTART_COUNT": str(assignment.restarts),
        "TORCHELASTIC_MAX_RESTARTS": str(assignment.max_restarts),
        "TORCHELASTIC_RUN_ID": assignment.run_id,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        **error_file,
    }


def plan_variables(plan: Plan, *, run_folder: Path, plan_path: Path) -> dict[str, str]:
    """Return the variables with the plan's path and degrees."""
    paths = {env.PLAN: plan_path, env.RUN_DIR: run_folder}
    return {name: str(path.resolve()) for name, path in paths.items()} | degree_variables(plan.layout)


def chosen_variables(
    plan: Plan, environment: Mapping[str, str], *, local_rank: int | None = None, left_unset: Collection[str] = ()
) -> list[Variable]:
    """Return communication variables that the launcher chooses for a plan, unless the user has set them.

    `local_rank`: what it gets; None: in words for all. `left_unset`: names of variables that
    this node cannot have. Nothing is chosen that NCCL detects better itself, as protocols.
    NCCL_CROSS_NIC: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-cross-nic
    CUDA_DEVICE_MAX_CONNECTIONS: Megatron-LM asks for 1 with tensor or context parallelism, and FSDP for more
    (megatron/training/arguments.py).
    """
    layout = plan.layout
    cluster, several = plan.job.cluster, plan.placement.num_nodes > 1
    found = [
        Variable("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1", "a collective that fails ends its rank, as under torchrun")
    ]
    if not several:
        found.append(Variable("GLOO_SOCKET_IFNAME", "lo", "one node: host names that do not resolve are harmless"))
    if several and cluster.rails > 1 and cluster.node.gpu.kind == "cuda":
        why = f"{cluster.name} has {cluster.rails} rails: rings stay on one, since switching rails crosses the spine"
        found.append(Variable("NCCL_CROSS_NIC", "0", why))
    if cluster.node.gpu.kind == "cuda" and max(layout.tp, layout.cp) > 1 and layout.zero_stage <= 1:
        why = "tensor and context parallelism: collectives start in the order that overlaps them with the products"
        found.append(Variable("CUDA_DEVICE_MAX_CONNECTIONS", "1", why))
    found += fabric_variables(plan, local_rank)
    return [variable for variable in found if variable.name not in {*environment, *left_unset}]


def defaults(
    plan: Plan,
    environment: Mapping[str, str],
    *,
    num_threads: int,
    nccl_logs: Path | None = None,
    local_rank: int = 0,
    left_unset: Collection[str] = (),
) -> dict[str, str]:
    """Return variables that a rank gets unless the user has set them."""
    wanted = {"OMP_NUM_THREADS": str(num_threads)} | (nccl_recorder(nccl_logs) if nccl_logs else {})
    chosen = {
        variable.name: variable.value
        for variable in chosen_variables(plan, environment, local_rank=local_rank, left_unset=left_unset)
    }
    return chosen | {name: value for name, value in wanted.items() if name not in environment}


def nccl_recorder(logs: Path) -> dict[str, str]:
    """Return variables that make NCCL's flight recorder write its trace on a timeout, or on a write to its pipe.

    Names as in torch 2.13 (ProcessGroupNCCL.hpp, FlightRecorder.hpp); `stack_dump.ask_nccl` writes to the pipes. This
    has not run on a GPU yet.
    """
    return {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": str(logs / "nccl-trace-"),
        "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": str(logs / NCCL_PIPE_STEM),
    }


def wandb_variables(environment: Mapping[str, str], *, run_folder: Path, rank: int) -> dict[str, str]:
    """Return variables by which the wandb runs of a script's ranks are one group, unless the user has set them.

    The run of rank 0 has the name of the run folder, those of other ranks their number too.
    """
    name = run_folder.name
    wanted = {"WANDB_RUN_GROUP": name, "WANDB_NAME": f"{name}-rank-{rank}" if rank else name}
    return {key: value for key, value in wanted.items() if key not in environment}


def threads_per_rank(*, cores: int, ranks: int) -> int:
    """Divide the cores of a node by its ranks; at least one."""
    return max(1, cores // ranks)
