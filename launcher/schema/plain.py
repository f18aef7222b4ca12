"""Convert dataclasses to plain data for JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from launcher.errors import InputError
from launcher.schema.keys import join, without_none
from launcher.schema.nearest import unknown_key
from launcher.text import printable

_T = TypeVar("_T")
_WRONG = object()
MOST_PROBLEMS = 10  # of one document, listed in a message
LONGEST_SHOWN = 100  # characters of a name or value in a message
LARGEST = 2**63 - 1  # of whole numbers; arithmetic on longer ones takes forever


def to_plain(value: Any) -> Any:
    """Convert a dataclass, or a value in one, to plain data; a member of an Enum becomes its name."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be stored as plain data")


def from_plain(cls: type[_T], data: Any, prefix: str = "") -> _T:
    """The inverse of `to_plain`; raises InputError with every problem: extra or missing keys, wrong types.

    `prefix` names the data in messages.
    """
    reader = _Stored([])
    found = reader.value(cls, data, prefix)
    if reader.problems:
        more = len(reader.problems) - MOST_PROBLEMS
        raise InputError(reader.problems[:MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else []))
    made: _T = found
    return made


@dataclass(frozen=True)
class _Stored:
    problems: list[str]

    def value(self, kind: Any, data: Any, name: str) -> Any:
        kind, optional = without_none(kind)
        if kind is Any or (data is None and optional):
            return data
        origin = get_origin(kind)
        found = _WRONG
        if isinstance(kind, type) and is_dataclass(kind) and isinstance(data, Mapping):
            return self.dataclass(kind, data, name)
        if origin is tuple and isinstance(data, list | tuple):
            found = self.items(get_args(kind), data, name)
        elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(data, Mapping):
            inner = get_args(kind)[1]
            return {str(key): self.value(inner, item, join(name, key)) for key, item in data.items()}
        elif origin is None and isinstance(kind, type) and not is_dataclass(kind):
            found = _scalar(kind, data)
        elif origin in (Union, UnionType):  # of scalars
            found = next((data for one in get_args(kind) if _scalar(one, data) is not _WRONG), _WRONG)
        if found is _WRONG:
            found_text = printable(repr(data), longest=LONGEST_SHOWN)
            self.problems.append(f"{_shown(name) or 'the document'} = {found_text} is not {_kind_name(kind)}")
        return found

    def items(self, kinds: tuple[Any, ...], data: Any, name: str) -> Any:
        each = [kinds[0]] * len(data) if kinds[1:] == (...,) else list(kinds)
        if len(each) != len(data):
            return _WRONG
        pairs = enumerate(zip(each, data, strict=True))
        return tuple(self.value(kind, item, f"{name}[{i}]") for i, (kind, item) in pairs)

    def dataclass(self, cls: type, data: Mapping[str, Any], name: str) -> Any:
        known = [f.name for f in fields(cls)]
        before = len(self.problems)
        full = [join(name, field) for field in known]
        self.problems.extend(unknown_key(_shown(join(name, key)), full) for key in data if key not in known)
        self.problems.extend(f"{join(name, field)} is missing" for field in known if field not in data)
        hints = _hints(cls)
        values = {field: self.value(hints[field], data[field], join(name, field)) for field in known if field in data}
        return cls(**values) if len(self.problems) == before else _WRONG


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _scalar(kind: type, data: Any) -> Any:
    if issubclass(kind, Enum):
        return kind[data] if isinstance(data, str) and data in kind.__members__ else _WRONG
    if kind is Path:
        return Path(data) if isinstance(data, str) else _WRONG
    if isinstance(data, int) and abs(data) > LARGEST:
        return _WRONG
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is int and isinstance(data, float) and data.is_integer() and abs(data) <= LARGEST:
        return int(data)  # a size written in another unit
    return data if isinstance(data, kind) and (kind is bool or not isinstance(data, bool)) else _WRONG


def _shown(name: str) -> str:
    return printable(name, longest=LONGEST_SHOWN)


def _kind_name(kind: Any) -> str:
    return str(kind) if get_origin(kind) else str(getattr(kind, "__name__", kind))
