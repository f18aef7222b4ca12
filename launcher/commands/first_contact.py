"""Recognise command lines of torchrun, deepspeed and accelerate, and suggest the line that works here.

Pure except for reading files.

launcher run train.py --lr 3        →  launcher run script=train.py -- --lr 3
launcher run --nproc-per-node 2 …   →  launcher run launch.nproc_per_node=2 …
launcher plan tp=2 nodes=8          →  launcher plan layout.tp=2 cluster.num_nodes=8
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.errors import InputError

CORRECTED = ("run", "submit", "plan")
PROGRAMS = ("script", "module", "program")
GROUPS = ("cluster", "model", "stack", "layout", "train", "recipe", "launch", "tracking")
# Keys without a group; a test compares them with `launcher keys`.
TOP_LEVEL = (
    *PROGRAMS,
    *GROUPS,
    "output",
    "config_dir",
    "run_dir",
    "dry_run",
    "top",
    "why_not",
    "sizes",
    "tokens",
    "tokens_per_parameter",
    "mix",
    "days",
    "sort",
    "to",
    "plan",
    "again",
    "save",
)
OWN_FLAGS = ("-h", "--help", "--version", "-m", "--multirun", "--schema", "--resolve", "-i", "--info")
WITH_VALUE = ("-c", "--cfg", "-p", "--package", "-cd", "--config-dir")  # flags of ours too

# Options of torchrun, deepspeed and accelerate, by their names with underscores; None: no key is needed.
FLAGS = {
    "nproc_per_node": "launch.nproc_per_node", "num_gpus": "launch.nproc_per_node",
    "num_processes": "launch.nproc_per_node", "nnodes": "launch.nnodes", "num_nodes": "launch.nnodes",
    "num_machines": "launch.nnodes", "max_restarts": "launch.max_restarts", "start_method": "launch.start",
    "standalone": None, "rdzv_backend": None, "rdzv_endpoint": None, "rdzv_id": None, "rdzv_conf": None,
    "master_addr": None, "master_port": None, "node_rank": None, "machine_rank": None, "multi_gpu": None,
}  # fmt: skip
WITHOUT_VALUE = {"standalone", "multi_gpu"}
STARTERS = re.compile(r"python[\d.]*|torchrun|deepspeed|accelerate")  # what `launcher run` takes the place of
SHELLS = ("bash", "sh", "zsh")
# Names that other tools use for our keys, and the last components of ours.
SYNONYMS = {
    **{name: f"layout.{name}" for name in ("tp", "pp", "dp", "cp", "ep", "micro_batch", "zero_stage", "recompute")},
    "nproc_per_node": "launch.nproc_per_node", "nproc": "launch.nproc_per_node", "gpus": "launch.nproc_per_node",
    "ngpus": "launch.nproc_per_node", "num_gpus": "launch.nproc_per_node", "gpus_per_node": "launch.nproc_per_node",
    "nnodes": "launch.nnodes", "nodes": "launch.nnodes", "num_nodes": "launch.nnodes",
    "max_restarts": "launch.max_restarts", "partition": "launch.partition", "account": "launch.account",
    "zero": "layout.zero_stage", "tensor_parallel": "layout.tp", "pipeline_parallel": "layout.pp",
    "data_parallel": "layout.dp", "context_parallel": "layout.cp",
    "train.seq_len": "model.seq_len", "train.sequence_length": "model.seq_len", "train.precision": "train.dtype",
    "layout.max_memory": "layout.max_memory_gib", "plan.max_memory": "layout.max_memory_gib",
    "plan.risk": "layout.risk", "plan.memory_margin": "layout.memory_margin",
    "train.batch_size": "train.global_batch", "train.micro_batch": "layout.micro_batch",
}  # fmt: skip
# These count as ours only if the user's program cannot have an argument of that name.
WITHOUT_PROGRAM = {
    "seq_len": "model.seq_len", "sequence_length": "model.seq_len", "precision": "train.dtype", "dtype": "train.dtype",
    "batch_size": "train.global_batch", "global_batch": "train.global_batch", "steps": "train.steps",
    "max_memory": "layout.max_memory_gib", "memory_margin": "layout.memory_margin", "risk": "layout.risk",
    "max_steps": "train.steps", "lr": "train.lr", "engine": "train.engine",
}  # fmt: skip
IN_A_PLAN = {"launch.nnodes": "cluster.num_nodes", "launch.nproc_per_node": "cluster.node.num_gpus"}


def check_words(arguments: Sequence[str]) -> None:
    """Raise InputError with the corrected line if a command line uses another tool's terms."""
    if not arguments:
        return
    command, *words = arguments
    if _starts_a_program(command):
        command, words = "run", list(arguments)
    if command not in CORRECTED:
        return
    split = words.index("--") if "--" in words else len(words)
    line = _Line(command, words[:split], rest=words[split + 1 :])
    line.read()
    if line.reasons:
        said = "; ".join(dict.fromkeys(line.reasons))
        raise InputError(f"{said}: {line.corrected()}")


def _starts_a_program(word: str) -> bool:
    return word.endswith(".py") or word in SHELLS or STARTERS.fullmatch(word) is not None


@dataclass
class _Line:
    """Reads a command line word by word and assembles the corrected one."""

    command: str
    words: list[str]
    rest: list[str]
    overrides: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)  # of the program, found before `--`

    def corrected(self) -> str:
        arguments = [*self.arguments, *self.rest]
        return shlex.join(["launcher", self.command, *self.overrides, *(["--", *arguments] if arguments else [])])

    def read(self) -> None:
        while self.words:
            word = self.words.pop(0)
            if word in ("-m", "--multirun") and self.words and re.fullmatch(r"\w+(\.\w+)*", self.words[0]):
                self._program("module", self.words.pop(0), "python -m is module= here")
            elif word.startswith("-"):
                self._flag(word)
            elif "=" in word:
                self._key(word)
            else:
                self._bare(word)

    def _has_program(self) -> bool:
        return any(word.startswith(tuple(f"{key}=" for key in PROGRAMS)) for word in self.overrides)

    def _program(self, key: str, value: str, why: str) -> None:
        self.overrides.append(f"{key}={value}")
        self.reasons.append(why)

    def _flag(self, word: str) -> None:
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if word.partition("=")[0] in OWN_FLAGS:
            self.overrides.append(word)
        elif word.partition("=")[0] in WITH_VALUE:
            self.overrides += [word, *([] if equals or not self.words else [self.words.pop(0)])]
        elif name in FLAGS:
            if not equals and name not in WITHOUT_VALUE:
                value = self.words.pop(0) if self.words else "VALUE"
            key = FLAGS[name]
            self.overrides += [f"{key}={value}"] if key else []
            self.reasons.append(f"--{name} is {key}= here" if key else f"--{name} is not needed")
        elif self._has_program():
            self._all_to_program(word)
        else:
            self.overrides.append(word)  # argparse says that it knows no such flag

    def _key(self, word: str) -> None:
        name, _, value = word.partition("=")
        known = SYNONYMS if self._has_program() else SYNONYMS | WITHOUT_PROGRAM
        if name in known:
            key = IN_A_PLAN.get(known[name], known[name]) if self.command == "plan" else known[name]
            self.overrides.append(f"{key}={value}")
            self.reasons.append(f"{name} is {key} here")
        elif self._has_program() and re.fullmatch(r"\w+", name) and name not in TOP_LEVEL:
            self.arguments.append(word)
            self.reasons.append(f"{name} is not a key of the launcher; arguments of the program go after --")
        else:
            self.overrides.append(word)

    def _bare(self, word: str) -> None:
        if self._has_program():
            self._all_to_program(word)
        elif STARTERS.fullmatch(word) and self.command != "plan":
            drops = {"accelerate": ("launch",)}.get(word, ("-u",))
            while self.words and self.words[0] in drops:
                self.words.pop(0)
            self.reasons.append(f"`launcher {self.command}` takes the place of {word}")
        elif word in SHELLS and self.command != "plan":
            self._program("program", word, "a program is given as program=")
            self.arguments += self.words
            self.words.clear()
        elif word.endswith(".py") and self.command != "plan":
            self._program("script", word, "a script is given as script=")
        elif word.startswith(("./", "/")) and Path(word).is_file() and self.command != "plan":
            self._program("program", word, "a program is given as program=")
        else:
            self.overrides.append(word)

    def _all_to_program(self, word: str) -> None:
        self.arguments += [word, *self.words]
        self.words.clear()
        self.reasons.append("arguments of the program go after --")
