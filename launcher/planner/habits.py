"""Habits of a stack in another tool's settings: one table a tool, for its export and for the reader of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.stacks.choice import StackKeys
from launcher.stacks.profiles import stack_of

KEYS = tuple(key.name for key in fields(StackKeys) if key.name not in ("name", "year"))
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"  # a variable of start.sh, not a setting
SEGMENTS = MappingProxyType({True: {ALLOCATOR: "expandable_segments:True"}, False: {}})
Settings = Mapping[str, Any]
NONE: Settings = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What decides which settings a tool has for a habit: of a plan, or of a file that is read."""

    dtype: str = "bf16"
    zero_stage: int = 0
    tp: int = 1
    pp: int = 1
    sequence_parallel: bool = False
    gated: bool = True
    bias: bool = False
    compile: bool = False
    deepspeed: bool = False


@dataclass(frozen=True, kw_only=True)
class Option:
    """Settings that ask a tool for a habit, by the habit's value; none where the tool does that by itself.

    `absent`: the value of a file without them, where that is not what the profile says. `earlier`: settings of other
    versions with the value that each asks for; they are read, not written. `unread`: why no reader finds them.
    """

    settings: Mapping[Any, Settings]
    absent: Any = None
    earlier: Mapping[str, Any] = field(default_factory=lambda: NONE)
    unread: str = ""


@dataclass(frozen=True)
class PartOf:
    """Another habit's option says this one too."""

    key: str


Entry = Option | PartOf | str  # str: why the tool has no option
Table = Mapping[str, Entry]


def lacking(reason: str, *keys: str) -> dict[str, Entry]:
    """Habits that a tool has no option for."""
    return dict.fromkeys(keys, reason)


def setup_of(job: Job, layout: Layout, *, deepspeed: bool = False) -> Setup:
    """What decides in a plan; `deepspeed`: DeepSpeed trains there."""
    model = job.model
    return Setup(
        dtype=job.training.dtype,
        zero_stage=layout.sharding,
        tp=layout.tp,
        pp=layout.pp,
        sequence_parallel=layout.sequence_parallel,
        gated=model.gated_mlp,
        bias=model.bias,
        compile=job.stack.compile,
        deepspeed=deepspeed,
    )


def assumed(job: Job, layout: Layout) -> dict[str, Any]:
    """What a plan assumes of its software, by key: the effect where a key is a rule or a part of one."""
    habits: dict[str, Any] = {key: getattr(job.stack, key) for key in KEYS}
    overlaps = job.stack.overlaps_reduction(zero_stage=layout.sharding, pipeline=layout.pp > 1)
    return habits | {"grad_reduce_dtype": job.stack.reduces_in(job.training), "overlap_grad_reduce": overlaps}


def settings_for(table: Table, habits: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by which a tool does what a plan assumes."""
    found: dict[str, Any] = {}
    for key, entry in table.items():
        if isinstance(entry, Option):
            found |= entry.settings.get(habits[key], NONE)
    return found


def habits_in(table: Table, found: Settings) -> dict[str, Any]:
    """Habits that a file's settings ask for; of what they leave out the profile decides."""
    habits = {key: _asked(entry, found) for key, entry in table.items() if isinstance(entry, Option)}
    return {key: value for key, value in habits.items() if value is not None}


def _asked(option: Option, found: Settings) -> Any:
    if option.unread:
        return None
    for value, settings in option.settings.items():
        if settings and all(name in found and found[name] == wanted for name, wanted in settings.items()):
            return value
    return next((value for name, value in option.earlier.items() if found.get(name, False) is not False), option.absent)


def unsaid(table: Table, job: Job, layout: Layout, *, profile: str) -> Iterator[str]:
    """Each habit that a plan assumes, as its key and value, that the tool neither has by itself nor has an option for.

    `profile`: the stack that the tool is.
    """
    compiled = job.stack.compile if isinstance(table["compile"], Option) else None
    own = assumed(replace(job, stack=stack_of(profile, engine=job.training.engine, compile=compiled)), layout)
    for key, value in assumed(job, layout).items():
        entry = table[key]
        said = isinstance(entry, PartOf) or (isinstance(entry, Option) and value in entry.settings)
        if not said and value != own[key]:
            yield f"stack.{key}={str(value).lower() if isinstance(value, bool) else value}"


def nested(settings: Settings) -> dict[str, Any]:
    """Settings with dots in their names as mappings in mappings."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        *groups, last = name.split(".")
        inner = found
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return found


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of mappings in mappings, by names with dots."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
