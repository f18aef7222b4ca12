"""A batch script as the rules see it: its `#SBATCH` options, its commands, and what runs inside its tasks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from launcher.lint.shell import (
    DECLARATIONS,
    ShellCommand,
    assignments,
    commands,
    expand,
    here_document_lines,
    program,
    unquote,
)
from launcher.text import whole_number

SHORT_OPTIONS = {
    "-A": "account", "-a": "array", "-C": "constraint", "-c": "cpus-per-task", "-D": "chdir", "-d": "dependency",
    "-e": "error", "-G": "gpus", "-J": "job-name", "-K": "kill-on-bad-exit", "-N": "nodes", "-n": "ntasks",
    "-o": "output", "-p": "partition", "-q": "qos", "-t": "time", "-W": "wait", "-w": "nodelist", "-x": "exclude",
}  # fmt: skip
STARTERS = ("srun", "mpirun", "mpiexec")
LAUNCHERS = re.compile(
    r"(?:^|[\s/;])(torchrun|deepspeed|accelerate\s+launch|-m\s+torch\.distributed\.(?:run|launch)|-m\s+torchrun)(?=\s|$)"
)
LONGEST_COMMAND = 50_000  # characters; rules search in it
PRINTERS = ("echo", "printf", "cat", "logger", "tee", "grep", "test", "[", "[[", ":", "trap")
SHELL_C = re.compile(r"^-\w*c$")


@dataclass(frozen=True)
class Directive:
    """One option of an `#SBATCH` line."""

    line: int
    name: str
    value: str


@dataclass(frozen=True)
class StartCommand:
    """A command that starts processes: a launcher, or a starter (srun, mpirun) with what it starts.

    `options` are the starter's; `text` is the whole command, the script's own variables put in.
    """

    line: int
    starter: str | None
    options: dict[str, str]
    text: str
    operator: str

    @property
    def launcher(self) -> str | None:
        """`torchrun`, `deepspeed`, … where the command starts one."""
        match = LAUNCHERS.search(self.text)
        return " ".join(match[1].split()) if match else None

    @property
    def trains(self) -> bool:
        """Return whether it runs a Python script named after training."""
        words = self.text.split()
        scripts = any(re.search(r"(?:train|finetune)[\w-]*\.py$", word[-200:].rstrip("\"'")) for word in words)
        return scripts and any(re.match(r"[\"']?(\S{0,200}/)?python[\d.]*$", word) for word in words)

    def flag(self, *names: str) -> str | None:
        """Value of the first of `--name` (dashes and underscores alike) in the command; None where it is absent."""
        for name in names:
            pattern = (
                "--" + re.sub("[-_]", "[-_]", name) + r"(?:[=\s]+(?P<value>\"[^\"]*\"|'[^']*'|[^\s]+))?(?=\s|$|['\"])"
            )
            match = re.search(r"(?<![\w-])" + pattern, self.text)
            if match:
                return (match["value"] or "").strip("\"'")
        return None


@dataclass(frozen=True)
class BatchScript:
    """A batch script, read but not run."""

    raw: str

    @cached_property
    def text(self) -> str:
        """The script with the line breaks that a shell wants."""
        return self.raw.replace("\r\n", "\n")

    @cached_property
    def lines(self) -> list[str]:
        return self.text.split("\n")[: -1 if self.text.endswith("\n") else None]

    @cached_property
    def first_command_line(self) -> int:
        """Line of the first command; Slurm reads no directive after it."""
        return next((i for i, s in enumerate(self.lines, 1) if s.strip() and not s.lstrip().startswith("#")), 10**9)

    @cached_property
    def directives(self) -> list[Directive]:
        return [d for i, s in enumerate(self.lines, 1) if i < self.first_command_line for d in parse_directive(i, s)]

    @cached_property
    def options(self) -> dict[str, str]:
        """Batch options by long name; the last one wins, as in Slurm."""
        return {directive.name: directive.value for directive in self.directives}

    @cached_property
    def commands(self) -> list[ShellCommand]:
        return commands(self.text)

    @cached_property
    def code(self) -> str:
        """The text without comment lines."""
        return "\n".join(line for line in self.lines if not line.lstrip().startswith("#"))

    @cached_property
    def here_document_lines(self) -> frozenset[int]:
        return here_document_lines(self.text)

    @cached_property
    def variables(self) -> dict[str, str]:
        """The raw values that the script sets at its top level. `A+=x` counts as set to x."""
        return {name: value for command in self.commands for name, value in assignments(command).items()}

    @cached_property
    def in_tasks(self) -> list[ShellCommand]:
        """Commands that a `bash -c '…'` of the script runs, once in every task."""
        return [inner for command in self.commands for inner in inner_commands(command)]

    @cached_property
    def starts(self) -> list[StartCommand]:
        found = (self._start(command) for command in self.commands)
        return [start for start in found if start is not None]

    @cached_property
    def start_lines(self) -> frozenset[int]:
        return frozenset(start.line for start in self.starts)

    def _start(self, command: ShellCommand) -> StartCommand | None:
        words = program(command)
        if not words or words[0] in (*DECLARATIONS, *PRINTERS):
            return None
        text = expand(" ".join(words)[:LONGEST_COMMAND], self.variables)
        first = text.split(maxsplit=1)[0].strip("\"'").rpartition("/")[2] if text.split() else ""
        if first in STARTERS:
            return StartCommand(command.line, first, starter_options(text), text, command.operator)
        return StartCommand(command.line, None, {}, text, command.operator) if LAUNCHERS.search(text) else None

    def number(self, *names: str) -> int | None:
        """The first of these batch options that is a plain number."""
        values = (whole_number(self.options.get(name)) for name in names)
        return next((value for value in values if value is not None), None)

    @cached_property
    def num_nodes(self) -> int | None:
        value = self.options.get("nodes", "").partition("-")[2] or self.options.get("nodes", "")
        return whole_number(value)

    @cached_property
    def gpus_per_node(self) -> int | None:
        """GPUs asked for on each node, where the script says it."""
        for name in ("gpus-per-node", "gres"):
            match = re.search(r"(?:^|gpu[:=\w.-]{0,80}?[:=]|:)([0-9]{1,9})(?:\(|,|$)", self.options.get(name, ""))
            if match and (name != "gres" or "gpu" in self.options["gres"]):
                return int(match[1])
        return None

    def tasks_per_node(self, start: StartCommand | None = None) -> int | None:
        """Tasks on each node, from the starter's own options first."""
        for options in ([start.options] if start else []) + [self.options]:
            if (per_node := whole_number(options.get("ntasks-per-node"))) is not None:
                return per_node
            if (tasks := whole_number(options.get("ntasks"))) is not None and self.num_nodes:
                return -(-tasks // self.num_nodes)
        return None


def parse_directive(line: int, text: str) -> Iterator[Directive]:
    """The options of one `#SBATCH` line: `--a=b`, `--a b`, `-a b`, `-ab`."""
    if not text.startswith("#SBATCH"):
        return
    try:
        words = shlex.split(text[len("#SBATCH") :], comments=True)
    except ValueError:
        words = text[len("#SBATCH") :].split()
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
        elif word[:2] in SHORT_OPTIONS:
            name, equals, value = SHORT_OPTIONS[word[:2]], word[2:], word[2:].removeprefix("=")
        else:
            continue
        if not equals and words and not words[0].startswith("-"):
            value = words.pop(0)
        yield Directive(line, name, value)


def starter_options(text: str) -> dict[str, str]:
    """Options of srun by long name, up to the program that it starts (a value after a blank ends at the next word)."""
    options: dict[str, str] = {}
    words = text.split()[1:]
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
        else:
            name = SHORT_OPTIONS.get(word[:2], word[1:2])
            equals = value = word[2:].removeprefix("=")
        takes_next = not equals and name in {*SHORT_OPTIONS.values(), "jobid", "export", "mem"} - {"kill-on-bad-exit"}
        options[name] = words.pop(0) if takes_next and words else value
    return options


def inner_commands(command: ShellCommand) -> Iterator[ShellCommand]:
    """Commands in the string of a `bash -c STRING` inside `command`, with their line."""
    words = command.words
    for shell, flag, string in zip(words, words[1:], words[2:], strict=False):
        if shell.rpartition("/")[2] in ("bash", "sh") and SHELL_C.match(flag):
            before = command.text.partition(string)[0].count("\n")
            for inner in commands(unquote(string)):
                yield ShellCommand(command.line + before + inner.line - 1, inner.words, inner.operator)
