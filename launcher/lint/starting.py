"""Rules on how ranks are started: launchers, tasks, GPUs and node numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.lint.finding import Rule, Subject, Trap
from launcher.lint.script import StartCommand
from launcher.lint.shell import assignments, live_variables
from launcher.text import whole_number

PER_TASK = ("SLURM_PROCID", "SLURM_NODEID", "SLURM_LOCALID")
TP_FLAGS = ("tensor-model-parallel-size", "tensor-parallel-size", "tensor_parallel_degree", "tp-size", "tp")
NPROC = ("nproc-per-node", "nproc", "num_gpus", "num_processes_per_node")


def launcher_times_tasks(subject: Subject) -> Iterator[Trap]:
    for start in subject.script.starts:
        tasks = subject.script.tasks_per_node(start)
        if start.starter and start.launcher and tasks is not None and tasks > 1:
            yield Trap(start.line, f"{start.starter} with {tasks} tasks a node starts {start.launcher} in each")


def launcher_on_first_node_only(subject: Subject) -> Iterator[Trap]:
    nodes = subject.script.num_nodes
    for start in subject.script.starts:
        unknown = start.text.startswith(("$", '"$'))  # a variable that may hold srun
        if start.starter is None and nodes and nodes > 1 and start.launcher != "deepspeed" and not unknown:
            yield Trap(start.line, f"{start.launcher} without srun in a job of {nodes} nodes")


def gpus_per_task(subject: Subject) -> Iterator[Trap]:
    for directive in subject.script.directives:
        if directive.name == "gpus-per-task":
            yield Trap(directive.line, f"--gpus-per-task={directive.value}")
    for start in subject.script.starts:
        if "gpus-per-task" in start.options:
            yield Trap(start.line, f"--gpus-per-task={start.options['gpus-per-task']}")


def gpu_bind(subject: Subject) -> Iterator[Trap]:
    places = [(d.line, d.name, d.value) for d in subject.script.directives]
    places += [(start.line, name, value) for start in subject.script.starts for name, value in start.options.items()]
    for line, name, value in places:
        if name == "gpu-bind" and value != "none":
            yield Trap(line, f"--gpu-bind={value}")


def node_rank_with_c10d(subject: Subject) -> Iterator[Trap]:
    for start in subject.script.starts:
        if start.flag("node-rank") is not None and start.flag("rdzv-backend") == "c10d":
            yield Trap(start.line, f"--node-rank={start.flag('node-rank')} with --rdzv-backend=c10d")


def expanded_too_early(subject: Subject) -> Iterator[Trap]:
    for command in subject.script.commands:
        if command.line not in subject.script.start_lines and not assignments(command):
            continue
        read_here = [word for word in command.words if not re.search(r"<<-?\s*['\"]", word)]
        early = {name for word in read_here for name in live_variables(word) if name in PER_TASK}
        for name in sorted(early):
            yield Trap(command.line, f"${name} in: {command.text}")


def world_size_mismatch(subject: Subject) -> Iterator[Trap]:
    nodes = subject.script.num_nodes
    for start in subject.script.starts:
        given = start.flag("nnodes", "num_machines") if start.launcher else None
        if nodes and (number := whole_number(given)) is not None and number != nodes:
            yield Trap(start.line, f"--nnodes={given} in a job of --nodes={nodes}")


def more_ranks_than_gpus(subject: Subject) -> Iterator[Trap]:
    for start in subject.script.starts:
        nproc = start.flag(*NPROC) if start.launcher else None
        if subject.gpus_per_node and (whole_number(nproc) or 0) > subject.gpus_per_node:
            yield Trap(start.line, f"{nproc} ranks on a node of {subject.gpus_per_node} GPUs")


def idle_gpus(subject: Subject) -> Iterator[Trap]:
    for start in subject.script.starts:
        nproc = start.flag(*NPROC) if start.launcher else None
        asked = subject.script.gpus_per_node
        number = whole_number(nproc)
        if number is not None and asked and number < asked:
            yield Trap(start.line, f"{nproc} ranks a node, but {asked} GPUs asked for on each")


def tensor_parallel_over_nodes(subject: Subject) -> Iterator[Trap]:
    gpus = subject.gpus_per_node
    for command in subject.script.commands:
        text = command.text
        for flag in TP_FLAGS:
            pattern = r"(?<![\w-])(?:--)?" + flag.replace("-", "[-_]") + r"[=\s]+(\d+)(?!\w)"
            for match in re.finditer(pattern, text) if gpus else ():
                if gpus and (whole_number(match[1]) or 0) > gpus:
                    yield Trap(command.line, f"tensor parallel size {match[1]} on nodes of {gpus} GPUs")
    for name, value in subject.script.variables.items():
        sizes_tp = re.fullmatch(r"TP(_?SIZE)?|TENSOR_(MODEL_)?PARALLEL(_SIZE)?", name)
        if gpus and sizes_tp and (whole_number(value) or 0) > gpus:
            line = next(c.line for c in subject.script.commands if name in assignments(c))
            yield Trap(line, f"{name}={value} on nodes of {gpus} GPUs")


def one_task_without_launcher(subject: Subject) -> Iterator[Trap]:
    for start in subject.script.starts:
        gpus, tasks = subject.script.gpus_per_node, subject.script.tasks_per_node(start)
        if start.starter and not start.launcher and start.trains and gpus and gpus > 1 and tasks == 1:
            yield Trap(start.line, f"one task a node starts one process for {gpus} GPUs: {start.text}")


def cpus_not_inherited(subject: Subject) -> Iterator[Trap]:
    wanted = subject.script.options.get("cpus-per-task")
    if not wanted or "SRUN_CPUS_PER_TASK" in subject.script.variables:
        return
    for start in subject.script.starts:
        if start.starter == "srun" and "cpus-per-task" not in start.options and _is_work(start):
            yield Trap(start.line, f"#SBATCH --cpus-per-task={wanted}, but not on this srun: {start.text}")


def keeps_running_after_a_death(subject: Subject) -> Iterator[Trap]:
    if "kill-on-bad-exit" in subject.script.options or "SLURM_KILL_BAD_EXIT" in subject.script.variables:
        return
    nodes = subject.script.num_nodes or 1
    for start in subject.script.starts:
        several = nodes > 1 or (subject.script.tasks_per_node(start) or 1) > 1
        if start.starter == "srun" and several and "kill-on-bad-exit" not in start.options and _is_work(start):
            yield Trap(start.line, start.text)


def _is_work(start: StartCommand) -> bool:
    """Whether a start is the training itself, not a `srun hostname` or a copy of data."""
    return (
        start.launcher is not None or re.search(r"\bpython|\.py\b|\.sh\b|apptainer|singularity", start.text) is not None
    )


RULES = (
    Rule(
        "launcher-times-tasks", "error", launcher_times_tasks,
        "srun starts the launcher once in every task and each of them starts all ranks of the node: "
        "8 tasks × 8 processes fight for 8 GPUs and for the port.",
        "give the launcher one task a node: --ntasks-per-node=1 (or drop the launcher and let srun start the ranks)",
    ),
    Rule(
        "launcher-on-first-node", "error", launcher_on_first_node_only,
        "the batch script runs on the first node only: the other nodes never start, and the rendezvous waits for them.",
        "start it through srun with one task a node",
    ),
    Rule(
        "gpus-per-task", "error", gpus_per_task,
        "each task then sees only its own GPU: CUDA peer access, and NVLink with it, is lost between ranks.",
        "ask for --gpus-per-node and let each process pick its device by local rank",
    ),
    Rule(
        "gpu-bind", "error", gpu_bind,
        "binding hides the other GPUs of the node from a task: no NVLink peer access between ranks.",
        "--gpu-bind=none",
    ),
    Rule(
        "node-rank-with-c10d", "warning", node_rank_with_c10d,
        "the c10d rendezvous ignores --node-rank and numbers the nodes by string sort of their host names "
        "(node10 before node2): ranks do not sit where the script says.",
        "--rdzv-backend=static with --master-addr keeps the order (without in-job restarts)",
    ),
    Rule(
        "expanded-too-early", "error", expanded_too_early,
        "the batch shell expands it, once, on the first node: every task gets 0.",
        "put it in single quotes inside the task: srun bash -c '… $SLURM_PROCID …', or escape the dollar",
    ),
    Rule(
        "nnodes-mismatch", "error", world_size_mismatch,
        "the rendezvous waits for a number of nodes that the job does not have.",
        "--nnodes=$SLURM_NNODES",
    ),
    Rule(
        "more-ranks-than-gpus", "error", more_ranks_than_gpus,
        "two ranks on one GPU: NCCL refuses (duplicate GPU) or memory runs out.",
        "--nproc-per-node must be at most the GPUs of a node",
    ),
    Rule(
        "idle-gpus", "warning", idle_gpus,
        "GPUs are asked for, and paid for, that no rank uses.",
        "make --nproc-per-node and --gpus-per-node equal",
    ),
    Rule(
        "tp-over-node", "error", tensor_parallel_over_nodes,
        "tensor parallelism talks several times in every layer: the network is far slower than NVLink.",
        "tensor parallel size at most the GPUs of a node; use pipeline parallelism between nodes",
    ),
    Rule(
        "one-task-without-launcher", "warning", one_task_without_launcher,
        "one process uses one GPU (unless the script starts more itself); the others of the node stay idle.",
        "start torchrun in the task, or set --ntasks-per-node to the GPUs of a node",
    ),
    Rule(
        "cpus-not-inherited", "warning", cpus_not_inherited,
        "since Slurm 22.05 srun does not take --cpus-per-task from the batch job: the task is bound to one core.",
        "srun --cpus-per-task=$SLURM_CPUS_PER_TASK, or export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
    ),
    Rule(
        "no-kill-on-bad-exit", "warning", keeps_running_after_a_death,
        "when one task dies the others wait for it in a collective until the time limit, and the GPUs are paid for.",
        "srun --kill-on-bad-exit=1",
    ),
)  # fmt: skip
