"""Rules on how the launchers of several nodes find each other, and on how many ranks they count."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.lint.finding import Rule, Subject, Trap
from launcher.lint.script import StartCommand
from launcher.lint.shell import DECLARATIONS, ShellCommand, assignments, program, unquote
from launcher.text import whole_number

TORCH = re.compile(r"torchrun|torch\.distributed\.run|-m torchrun")
RANK_NAMES = ("RANK", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK", "MACHINE_RANK")


def _torchruns(subject: Subject) -> Iterator[StartCommand]:
    """torchrun on several nodes, where nothing in its environment (PET_*) says more than the script shows."""
    several = (subject.script.num_nodes or 1) > 1
    for start in subject.script.starts:
        if several and start.launcher and TORCH.search(start.launcher) and "PET_" not in subject.script.text:
            yield start


def _joins(start: StartCommand) -> bool:
    """Return whether the start names other nodes at all."""
    return start.flag("nnodes") not in (None, "1")


def each_node_alone(subject: Subject) -> Iterator[Trap]:
    for start in _torchruns(subject):
        if start.flag("standalone") is not None or (start.starter and start.flag("nnodes") in (None, "1", "1:1")):
            how = "--standalone" if start.flag("standalone") is not None else "no --nnodes"
            yield Trap(start.line, f"{how} in a job of {subject.script.num_nodes} nodes: {start.text}")


def no_meeting_point(subject: Subject) -> Iterator[Trap]:
    for start in _torchruns(subject):
        if _joins(start) and start.flag("rdzv-endpoint", "master-addr") is None and "-f" not in start.text.split():
            yield Trap(start.line, start.text)


def every_node_is_node_0(subject: Subject) -> Iterator[Trap]:
    for start in _torchruns(subject):
        static = start.flag("rdzv-backend") in (None, "static")
        if _joins(start) and static and start.flag("node-rank") is None and start.flag("rdzv-endpoint", "master-addr"):
            yield Trap(start.line, start.text)


def master_address_is_ignored(subject: Subject) -> Iterator[Trap]:
    for start in _torchruns(subject):
        c10d = start.flag("rdzv-backend") == "c10d"
        if c10d and start.flag("master-addr") is not None and start.flag("rdzv-endpoint") is None:
            yield Trap(start.line, f"--master-addr={start.flag('master-addr')} with --rdzv-backend=c10d")


def old_launcher(subject: Subject) -> Iterator[Trap]:
    for start in subject.script.starts:
        if start.launcher and start.launcher.endswith("torch.distributed.launch"):
            yield Trap(start.line, start.text)


def deepspeed_finds_no_nodes(subject: Subject) -> Iterator[Trap]:
    nodes = subject.script.num_nodes or 1
    for start in subject.script.starts:
        names_hosts = start.flag("hostfile", "H", "launcher", "no_ssh", "node_rank") is not None or " -H" in start.text
        if nodes > 1 and start.launcher == "deepspeed" and start.starter is None and not names_hosts:
            yield Trap(start.line, f"deepspeed without --hostfile in a job of {nodes} nodes")


def wrong_world_size(subject: Subject) -> Iterator[Trap]:
    script = subject.script
    nodes, gpus = script.num_nodes, subject.gpus_per_node
    for command in (*script.commands, *script.in_tasks):
        value = unquote(assignments(command).get("WORLD_SIZE", ""))
        if not (re.fullmatch(r"[0-9]{1,7}", value) and nodes and gpus):
            continue
        allowed = {nodes, nodes * gpus, nodes * (script.tasks_per_node() or 1)}
        if int(value) not in allowed:
            yield Trap(command.line, f"WORLD_SIZE={value} in a job of {nodes} nodes × {gpus} GPUs")


def fixed_rank(subject: Subject) -> Iterator[Trap]:
    script = subject.script
    if (script.num_nodes or 1) * (script.tasks_per_node() or 1) <= 1:
        return
    for command in script.commands:
        for name, value in assignments(command).items():
            if name not in RANK_NAMES or whole_number(unquote(value)) is None or program_words(command):
                continue
            if len(re.findall(rf"\b{name}(=|\+\+|\+=)", script.text)) == 1:
                yield Trap(command.line, f"{name}={value} for every task")


def program_words(command: ShellCommand) -> tuple[str, ...]:
    """Return what a command runs, with its assignments; None if it only assigns."""
    words = program(command)
    return () if words[:1] and words[0] in DECLARATIONS else words


def more_tasks_than_gpus(subject: Subject) -> Iterator[Trap]:
    for start, tasks, gpus in _tasks_without_a_launcher(subject):
        if tasks > gpus:
            yield Trap(start.line, f"{tasks} tasks on a node of {gpus} GPUs: {start.text}")


def fewer_tasks_than_gpus(subject: Subject) -> Iterator[Trap]:
    for start, tasks, gpus in _tasks_without_a_launcher(subject):
        if 1 < tasks < gpus:
            yield Trap(start.line, f"{tasks} tasks a node, but {gpus} GPUs asked for on each: {start.text}")


def _tasks_without_a_launcher(subject: Subject) -> Iterator[tuple[StartCommand, int, int]]:
    """Return steps with ranks as tasks: (step, its tasks on a node, GPUs of a node)."""
    gpus = subject.script.gpus_per_node
    for start in subject.script.starts:
        tasks = subject.script.tasks_per_node(start)
        if start.starter == "srun" and not start.launcher and start.trains and tasks and gpus:
            yield start, tasks, gpus


RULES = (
    Rule(
        "each-node-alone", "error", each_node_alone,
        "each launcher counts one node: every node trains a model of its own, and all write the same checkpoints.",
        '--nnodes="$SLURM_NNODES" --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"',
    ),
    Rule(
        "no-meeting-point", "error", no_meeting_point,
        "without --rdzv-endpoint or --master-addr torchrun looks on 127.0.0.1: every node waits for itself.",
        '--rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"',
    ),
    Rule(
        "every-node-is-node-0", "error", every_node_is_node_0,
        "torchrun's default rendezvous is static, and its default --node-rank is 0: all nodes claim the same ranks.",
        "--rdzv-backend=c10d, or --node-rank from $SLURM_NODEID inside the task",
    ),
    Rule(
        "master-addr-ignored", "error", master_address_is_ignored,
        "the c10d rendezvous takes --rdzv-endpoint alone and ignores --master-addr: the nodes do not find each other.",
        '--rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"',
    ),
    Rule(
        "old-launcher", "warning", old_launcher,
        "torch.distributed.launch is deprecated: it passes --local-rank to scripts that expect LOCAL_RANK.",
        "torchrun",
    ),
    Rule(
        "deepspeed-finds-no-nodes", "error", deepspeed_finds_no_nodes,
        "deepspeed reads its nodes from a hostfile (/job/hostfile by default) and without one uses this node alone.",
        "--hostfile with one line for each of `scontrol show hostnames`, or torchrun under srun",
    ),
    Rule(
        "wrong-world-size", "error", wrong_world_size,
        "the process group waits for another number of ranks than the job starts.",
        "WORLD_SIZE=$SLURM_NTASKS where each task is a rank; with torchrun do not set it",
    ),
    Rule(
        "fixed-rank", "error", fixed_rank,
        "all tasks inherit it: every rank believes that it is this one.",
        "let torchrun set it, or take it from $SLURM_PROCID inside the task",
    ),
    Rule(
        "more-tasks-than-gpus", "error", more_tasks_than_gpus,
        "two ranks on one GPU: NCCL refuses (duplicate GPU) or memory runs out.",
        "--ntasks-per-node at most the GPUs of a node",
    ),
    Rule(
        "fewer-tasks-than-gpus", "warning", fewer_tasks_than_gpus,
        "GPUs are asked for, and paid for, that no rank uses.",
        "make --ntasks-per-node and --gpus-per-node equal",
    ),
)  # fmt: skip
