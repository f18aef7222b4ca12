"""What a user runs today, from another tool's files: pinned layout keys, and what was not read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import InputError
from launcher.export.shell import conditional, programs_with, read_script
from launcher.files import content
from launcher.planner.habits import ALLOCATOR
from launcher.text import bounded, whole_number

TRUE = ("true", "yes", "1", "on")
MOST_CHARACTERS = 2**20
FORMS = "give a script, or a JSON, YAML or TOML file of settings"


@dataclass
class Reading:
    """Keys of ours with their values, as overrides; `target` is the tool, `unread` what was left aside.

    `accumulation`: micro-batches that a rank adds up, where the file gives them in place of the global batch.
    `open`: keys that the file sets to something that is known only where it runs, with its words.
    """

    target: str
    keys: dict[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    accumulation: int | None = None
    open: dict[str, str] = field(default_factory=dict)

    def take(self, key: str, value: Any) -> None:
        """Pin a key, unless the file does not say it."""
        if value is not None:
            self.keys[key] = value

    def take_number(self, key: str, flags: Flags, *names: str) -> None:
        """Pin a key to the number after the first of these flags; open where that is a variable of the outside."""
        found = first(flags, *names)
        if found is not None and "$" in found:
            self.open[key] = f"{next(name for name in names if flags.get(name))} {found}"
        else:
            self.take(key, number(found, names[0]))

    def number(self, flags: Flags, name: str) -> int | None:
        """The number after a flag; left aside, with its words, where that is a variable of the outside."""
        found = first(flags, name)
        if found is not None and "$" in found:
            self.unread.append(f"{name} {found}")
            return None
        return number(found, name)

    def overrides(self) -> list[str]:
        """The keys as the command line has them."""
        return [f"{key}={_word(value)}" for key, value in self.keys.items()]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: Any, name: str) -> int | None:
    """A whole number of at least 1; None for `auto` and for what is not there; raises InputError for anything else."""
    if value in (None, "auto"):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    found = value if isinstance(value, int) and not isinstance(value, bool) else whole_number(str(value))
    if found is None or not 1 <= found < 10**9:
        raise InputError(f"{name}={str(value)[:40]!r} must be a whole number of at least 1")
    return found


def flag(value: Any) -> bool:
    """Whether a value says yes, in words or as a truth value."""
    return value is True or str(value).lower() in TRUE


def read_text(file: Path) -> str:
    """The text of a user's file; raises InputError where there is none."""
    try:
        text = bounded(content(file).decode(), "a file of settings", most=MOST_CHARACTERS)
    except OSError as error:
        raise InputError(f"cannot read from={file} ({error.strerror}): give a file that is here") from error
    except UnicodeDecodeError as error:
        raise InputError(f"from={file} is no text: {FORMS}") from error
    if "\0" in text or not text.strip():
        raise InputError(f"from={file} is {'empty' if not text.strip() else 'no text'}: {FORMS}")
    return text


SEGMENTS = re.compile(r"PYTORCH(?:_CUDA|_HIP)?_ALLOC_CONF=\S*expandable_segments:(True|False)")
NEXT_FLAG = re.compile(r"-{1,2}[A-Za-z]")
Flags = Mapping[str, list[str]]


def flags_in(words: Sequence[str]) -> dict[str, list[str]]:
    """Every --flag of a command with the words after it; of one that is there twice the last."""
    found: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--") and NEXT_FLAG.match(word):
            name, equals, value = word.partition("=")
            values = found[name] = [value] if equals else []
        elif NEXT_FLAG.match(word):
            values = []
        else:
            values.append(word)
    return found


def command_in(text: str, known: Callable[[str], bool], reading: Reading) -> list[str]:
    """The words of the command of a script that says what is known; nodes and GPUs, and what the script leaves open."""
    script = read_script(text)
    found = list(programs_with(script, known))
    if len(found) > 1:
        reading.unread.append(f"{len(found) - 1} of {len(found)} such commands: the last one is read")
    words = found[-1] if found else []
    reading.unread += conditional(script, text)
    said = dict(nodes(flags_in(words)))
    for key, value in (("cluster.num_nodes", script.nodes), ("cluster.node.num_gpus", script.gpus)):
        reading.take(key, said.get(key, value))
    return words


def assigned(script: str, variable: str) -> str | None:
    """What a script sets a variable to, the last time."""
    found = re.findall(rf"(?<!\w){variable}=([^\s;]*)", script)
    return found[-1].strip("\"'") if found else None


def allocator(script: str) -> dict[str, str]:
    """The setting of PyTorch's allocator, by the newer and the older name of its variable."""
    found = SEGMENTS.search(script)
    return {ALLOCATOR: f"expandable_segments:{found[1]}"} if found else {}


def first(flags: Flags, *names: str) -> str | None:
    """The first word after the first of these flags that is there."""
    return next((flags[name][0] for name in names if flags.get(name)), None)


def nodes(flags: Flags) -> Iterator[tuple[str, int]]:
    """Nodes and ranks of a node, where torchrun is given them as numbers."""
    for key, names in (
        ("cluster.num_nodes", ("--nnodes", "--num_nodes", "--num_machines", "--nodes")),
        ("cluster.node.num_gpus", ("--nproc-per-node", "--nproc_per_node", "--num_gpus", "--gpus-per-node")),
    ):
        found = whole_number(first(flags, *names))
        if found:
            yield key, found


Reader = Callable[[Path, str], Reading]
