"""What a user runs today, from another tool's files: pinned layout keys, and what was not read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import InputError
from launcher.planner.habits import ALLOCATOR
from launcher.text import bounded, whole_number

TRUE = ("true", "yes", "1", "on")
MOST_CHARACTERS = 2**20


@dataclass
class Reading:
    """Keys of ours with their values, as overrides; `target` is the tool, `unread` what was left aside.

    `accumulation`: micro-batches that a rank adds up, where the file gives them in place of the global batch.
    """

    target: str
    keys: dict[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    accumulation: int | None = None

    def take(self, key: str, value: Any) -> None:
        """Pin a key, unless the file does not say it."""
        if value is not None:
            self.keys[key] = value

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
        return bounded(file.read_text(), "a file of settings", most=MOST_CHARACTERS)
    except OSError as error:
        raise InputError(f"cannot read from={file} ({error.strerror}): give a file that is here") from error
    except UnicodeDecodeError as error:
        raise InputError(f"from={file} is no text: give a script, a JSON or a YAML file") from error


ASSIGNED = re.compile(
    r"""(?m)(?:^|[;&])[ \t]*(?:(?:export|local|readonly)[ \t]+)?"""
    r"""([A-Za-z_]\w*)=("[^"]*"|'[^']*'|\([^)]{0,4096}\)|[^\s;]*)"""
)
SEGMENTS = re.compile(r"PYTORCH(?:_CUDA|_HIP)?_ALLOC_CONF=\S*expandable_segments:(True|False)")
USED = re.compile(r"\$\{?([A-Za-z_]\w*)(?:\[[@*]\])?(?::-([^}]*))?\}?")
WORD = r"(?:'[^']*'|[^\s;|&)]+)"
FLAG = re.compile(rf"(?<!\S)(--[A-Za-z][\w.-]*)(?:=({WORD}))?((?:\s+(?!-{{1,2}}[A-Za-z]){WORD})*)")


def flags_of(script: str) -> dict[str, list[str]]:
    """Every --flag of a shell script with the words after it; variables that it sets itself are put in their place."""
    text = re.sub(r"\\\r?\n", " ", re.sub(r"(?m)(^|\s)#.*$", r"\1", script))
    said = {name: value.strip("\"'()") for name, value in ASSIGNED.findall(text)}
    values = {name: value for name, value in said.items() if value.count("{") == value.count("}")}  # cut at a space

    def replaced(match: re.Match[str]) -> str:
        return values.get(match[1]) or match[2] or match[0]

    for _ in range(3):  # variables of variables
        text = USED.sub(replaced, text)[: 4 * MOST_CHARACTERS]
    found: dict[str, list[str]] = {}
    for match in FLAG.finditer(text.replace('"', " ")):
        words = ([match[2]] if match[2] else []) + re.findall(WORD, match[3])
        found[match[1]] = [word.strip("'") for word in words]
    return found


def assigned(script: str, variable: str) -> str | None:
    """What a script sets a variable to, the last time."""
    found = re.findall(rf"(?<!\w){variable}=([^\s;]*)", script)
    return found[-1].strip("\"'") if found else None


def allocator(script: str) -> dict[str, str]:
    """The setting of PyTorch's allocator, by the newer and the older name of its variable."""
    found = SEGMENTS.search(script)
    return {ALLOCATOR: f"expandable_segments:{found[1]}"} if found else {}


def first(flags: Mapping[str, list[str]], *names: str) -> str | None:
    """The first word after the first of these flags that is there."""
    return next((flags[name][0] for name in names if flags.get(name)), None)


def nodes(flags: Mapping[str, list[str]]) -> Iterator[tuple[str, int]]:
    """Nodes and ranks of a node, where torchrun is given them as numbers."""
    for key, names in (
        ("cluster.num_nodes", ("--nnodes", "--num_nodes", "--num_machines")),
        ("cluster.node.num_gpus", ("--nproc-per-node", "--nproc_per_node", "--num_gpus")),
    ):
        found = whole_number(first(flags, *names))
        if found:
            yield key, found


Reader = Callable[[Path, str], Reading]
