"""Rules on where a job's tasks run: containers, environments, local disks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.lint.finding import Rule, Subject, Trap
from launcher.lint.shell import ShellCommand, program

LOCAL = r"(/tmp\b|/dev/shm\b|/scratch/local\b|/local_?scratch\b|\$\{?(SLURM_)?TMPDIR\b)"
CHECKPOINT_FLAG = re.compile(
    rf"--?(?:output[-_]dir|save|save[-_](?:dir|path)|checkpoint[-_]?(?:dir|path|folder)?|ckpt[-_]?(?:dir|path)?)[=\s]+"
    rf"[\"']?(?P<path>{LOCAL}\S*)"
)


def _commands(subject: Subject) -> Iterator[ShellCommand]:
    yield from subject.script.commands
    yield from subject.script.in_tasks


def container_without_gpus(subject: Subject) -> Iterator[Trap]:
    for start in subject.script.starts:
        match = re.search(r"\b(apptainer|singularity)\s+(exec|run)\b(.*)", start.text)
        wants = subject.script.gpus_per_node
        if match and wants and not re.search(r"--(nv|nvccli|rocm)\b", match[3]):
            yield Trap(start.line, start.text)


def container_with_little_shared_memory(subject: Subject) -> Iterator[Trap]:
    for command in _commands(subject):
        words = " ".join(program(command))
        runs = re.search(r"(?:^|\s)(docker|podman)\s+run\b", words)
        if runs and not re.search(r"--shm-size|--ipc[= ]host", words):
            yield Trap(command.line, command.text)


def conda_without_its_hook(subject: Subject) -> Iterator[Trap]:
    script = subject.script
    first = script.lines[0] if script.lines else ""
    hooked = re.search(r"conda\.sh|shell\.(bash|posix)\s+hook|conda\s+init|\.bashrc|bin/activate", script.text)
    if hooked or re.search(r"\s(-\w*[li]|--login)\b", first):
        return
    for command in script.commands:
        words = program(command)
        if words[:1] in (("source",), (".",)):
            return  # what it reads may hold the hook
        if words[:2] in (("conda", "activate"), ("mamba", "activate"), ("micromamba", "activate")):
            yield Trap(command.line, command.text)


def installs_in_every_task(subject: Subject) -> Iterator[Trap]:
    starts = {start.line: start for start in subject.script.starts}
    in_tasks = [(c.line, " ".join(program(c))) for c in subject.script.in_tasks]
    in_tasks += [(line, start.text) for line, start in starts.items() if start.starter]
    for line, text in in_tasks:
        if re.search(r"\b(pip3?|uv pip|conda|mamba)\s+install\b", text):
            yield Trap(line, text)


def checkpoint_on_a_local_disk(subject: Subject) -> Iterator[Trap]:
    for start in subject.script.starts:
        if match := CHECKPOINT_FLAG.search(start.text):
            yield Trap(start.line, match[0])


def virtual_environment_of_the_node(subject: Subject) -> Iterator[Trap]:
    for command in subject.script.commands:
        words = program(command)
        if words[:1] in (("source",), (".",)) and len(words) > 1 and re.match(rf"[\"']?{LOCAL}", words[1]):
            nodes = subject.script.num_nodes or 1
            if nodes > 1 and words[1] not in subject.script.text.partition(command.text)[0]:
                yield Trap(command.line, f"{command.text} in a job of {nodes} nodes")


RULES = (
    Rule(
        "container-without-gpus", "error", container_without_gpus,
        "without --nv apptainer hides the driver: torch sees no GPU in the container.",
        "apptainer exec --nv (AMD: --rocm)",
    ),
    Rule(
        "little-shared-memory", "warning", container_with_little_shared_memory,
        "docker and podman give a container 64 MB of /dev/shm: data loaders and NCCL die of a bus error.",
        "--ipc=host, or --shm-size=16g",
    ),
    Rule(
        "conda-without-hook", "error", conda_without_its_hook,
        "a batch shell reads no .bashrc: `conda activate` fails, and the script goes on with another Python.",
        'eval "$(conda shell.bash hook)" or source …/etc/profile.d/conda.sh before it, or #!/bin/bash -l',
    ),
    Rule(
        "installs-in-every-task", "error", installs_in_every_task,
        "all tasks write the same environment at once, and others of your jobs use it at that moment.",
        "install once, on the login node, before sbatch",
    ),
    Rule(
        "checkpoint-on-local-disk", "error", checkpoint_on_a_local_disk,
        "a node's disk is emptied when the job ends, and other nodes do not see it: there is nothing to resume from.",
        "a folder of the shared file system; copy there from a local disk if that is faster",
    ),
    Rule(
        "environment-of-one-node", "error", virtual_environment_of_the_node,
        "the batch script runs on the first node: its disk has this environment, those of the other nodes do not.",
        "an environment on the shared file system, or unpack it on each node: srun --ntasks-per-node=1 tar …",
    ),
)  # fmt: skip
