"""Metadata that a field holds about its configuration key, and the list of a class's keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

AUTO = "auto"
_METADATA = "key"


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()


@dataclass(frozen=True, kw_only=True)
class Key:
    """The default, meaning and rule of one key, in the user's terms and units.

    name: of the key, if it differs from the field's.
    scale: the field is the key times this.
    choices: allowed words, also for the items of a list.
    names: allowed keys of a mapping.
    auto: `auto` is allowed; the field is then None.
    derived: `auto` is allowed; the class's `from_keys` or `__post_init__` replaces it.
    convert: makes the field's value from the key's, instead of the rule of its type; raises ValueError with the rule
        ("must be …"), or InputError with whole messages.
    choose: returns the dataclass that reads a group with this data; None: the field is None. Raises as `convert`.
    verbatim: the text of an override is the value, whatever characters it contains.
    """

    default: Any = REQUIRED
    meaning: str
    unit: str | None = None
    name: str | None = None
    scale: float = 1
    choices: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    maximum: float | None = None
    auto: bool = False
    derived: bool = False
    convert: Callable[[Any], Any] | None = None
    choose: Callable[[Mapping[str, Any]], type | None] | None = None
    verbatim: bool = False
    example: str | None = None
    source: str | None = None


def key(default: Any = REQUIRED, **rule: Any) -> Any:
    """Make a dataclass field that is a configuration key; see `Key` for the arguments. `meaning` is required."""
    made = Key(default=default, **rule)
    return field(metadata={_METADATA: made}, **_python_default(made))


def only_read(kind: Any, default: Any = None, **rule: Any) -> tuple[Any, Key]:
    """Make a key that a class reads without a field: an item of its ClassVar `also_read`, for its `from_keys`."""
    return kind, Key(default=default, **rule)


def _python_default(made: Key) -> dict[str, Any]:
    """Return the default of the field, from that of the key."""
    default = made.default
    if default is REQUIRED:
        return {}
    if default is None or (made.auto and default == AUTO):
        return {"default": None}
    if made.convert is not None:
        default = made.convert(default)
    elif made.scale != 1 and isinstance(default, int | float):
        default = default * made.scale
    if isinstance(default, Mapping):
        return {"default_factory": lambda: MappingProxyType(dict(default))}
    return {"default": tuple(default) if isinstance(default, list) else default}


@dataclass(frozen=True)
class Entry:
    """One key of a dataclass: its name, its field, its rule, and the type of the field (without None)."""

    name: str
    field: str
    key: Key
    kind: Any
    optional: bool
    is_group: bool
    kept: bool  # False: the class reads the key but has no field for it
    absent: Any  # the field's value without the key; REQUIRED if only the class can make it, or there is none

    @property
    def takes_auto(self) -> bool:
        return self.key.auto or self.key.derived

    def group_class(self, data: Any) -> type | None:
        """Return the dataclass that reads this group with this data; raises ValueError if none can."""
        if self.key.choose is None:
            kind: type = self.kind
            return kind
        return self.key.choose(data if isinstance(data, Mapping) else {})


@lru_cache(maxsize=256)
def entries(cls: type) -> tuple[Entry, ...]:
    """Return the keys of a dataclass, including those that it reads without a field."""
    hints = get_type_hints(cls)
    kept = [(f.name, hints[f.name], f.metadata[_METADATA]) for f in fields(cls) if _METADATA in f.metadata]
    read = [(name, kind, rule) for name, (kind, rule) in getattr(cls, "also_read", {}).items()]
    return tuple(
        [_entry(name, kind, rule, absent=getattr(cls, name, REQUIRED), kept=True) for name, kind, rule in kept]
        + [_entry(name, kind, rule, absent=rule.default, kept=False) for name, kind, rule in read]
    )


def _entry(name: str, kind: Any, rule: Key, *, absent: Any, kept: bool) -> Entry:
    kind, optional = without_none(kind)
    is_group = rule.choose is not None or is_dataclass(kind)
    return Entry(rule.name or name, name, rule, kind, optional, is_group=is_group, kept=kept, absent=absent)


def without_none(kind: Any) -> tuple[Any, bool]:
    """Strip None from a type; also return whether it was there."""
    if get_origin(kind) not in (Union, UnionType):
        return kind, False
    rest = tuple(part for part in get_args(kind) if part is not NoneType)
    return (rest[0] if len(rest) == 1 else kind), len(rest) < len(get_args(kind))


def walk(cls: type, prefix: str = "", data: Any = None) -> Iterator[tuple[str, Entry]]:
    """Yield every key of a class that takes a value, with its full name; `data` chooses the classes of groups."""
    for entry in entries(cls):
        name = join(prefix, entry.name)
        if not entry.is_group:
            yield name, entry
            continue
        inner = data.get(entry.name) if isinstance(data, Mapping) else None
        try:
            chosen = entry.group_class(inner)
        except ValueError:
            continue
        if chosen is not None:
            yield from walk(chosen, name, inner)


def names(cls: type, prefix: str = "", data: Any = None) -> list[str]:
    """Return the full names of all keys of a class that take a value."""
    return [name for name, _ in walk(cls, prefix, data)]


def defaults(cls: type, data: Any = None) -> dict[str, Any]:
    """Return the defaults of all keys, as a user would write them."""
    found: dict[str, Any] = {}
    for name, entry in walk(cls, "", data):
        value = entry.key.default
        if value is not REQUIRED:
            *groups, last = name.split(".")
            inside = found
            for group in groups:
                inside = inside.setdefault(group, {})
            inside[last] = _copied(value)
    return found


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copied(item) for name, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


def join(prefix: str, name: Any) -> str:
    """Return the full name of a key in a group."""
    return f"{prefix}.{name}" if prefix else str(name)
