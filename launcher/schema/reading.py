"""The reader of configuration: turns a group of keys into a frozen value, or reports every problem in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin

from launcher.errors import InputError
from launcher.schema.keys import AUTO, REQUIRED, Entry, Key, entries, join, names
from launcher.schema.nearest import unknown_key

_T = TypeVar("_T")
UNSET = "???"  # YAML's mark for a key without a value
MOST = 10**9  # of any whole number without its own maximum: a larger one is a typing error
LARGEST = 10**30  # of any number
_WRONG = object()  # replaces a value that had a problem
NOUNS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
PLURALS = {int: "whole numbers", float: "numbers", str: "texts", bool: "true or false"}


def read(cls: type[_T], data: Any, prefix: str = "", *, siblings: Sequence[type] = ()) -> _T:
    """Read a value of `cls` from a group of keys; raises InputError with every problem in it.

    `prefix` is the user's name of the group. `siblings`: other classes with keys in the same group.
    """
    reader = _Reader([], lambda: [name for each in (cls, *siblings) for name in names(each, prefix, data)])
    reader.closed((cls, *siblings), data, prefix)
    found = reader.made(cls, data, prefix)
    if reader.problems:
        raise InputError(reader.problems)
    made: _T = found
    return made


@dataclass(frozen=True)
class _Reader:
    problems: list[str]
    known: Callable[[], list[str]]  # the names of all keys, to suggest one for an unknown key

    def closed(self, classes: Sequence[type], data: Any, prefix: str, *, example: str | None = None) -> None:
        """Report data that is not a group, and unknown keys. `example`: how to write the group."""
        if not isinstance(data, Mapping):
            self.wrong(prefix, data, "must be a group of keys" + (f": {example}" if example else ""))
            return
        allowed = {entry.name for cls in classes for entry in entries(cls)}
        unknown = [leaf for name in data if name not in allowed for leaf in _leaves(data[name], join(prefix, name))]
        if unknown:
            known = self.known()
            self.problems.extend(unknown_key(leaf, known) for leaf in unknown)

    def made(self, cls: type, data: Any, prefix: str) -> Any:
        """Make the value of one class from a group, which other classes may share."""
        if not isinstance(data, Mapping):
            return _WRONG
        before = len(self.problems)
        values = {entry.field: self.entry(entry, cls, data, prefix) for entry in entries(cls)}
        values = {field: value for field, value in values.items() if value is not REQUIRED}
        if len(self.problems) > before:
            return _WRONG
        try:
            made = cls.from_keys(values) if hasattr(cls, "from_keys") else cls(**values)
        except InputError as error:
            self.problems.extend(error.problems)
            return _WRONG
        found = _between_keys(made)
        self.problems.extend(found)
        return _WRONG if found else made

    def entry(self, entry: Entry, cls: type, data: Mapping[str, Any], prefix: str) -> Any:
        """Return the field's value of one key; REQUIRED if only the dataclass can make its default."""
        if not entry.is_group and entry.name not in data and entry.key.default is not REQUIRED:
            return entry.absent
        name, given = join(prefix, entry.name), data.get(entry.name, UNSET)
        if entry.is_group:
            return self.subgroup(entry, cls, {} if given in (UNSET, None) else given, name)
        if given != UNSET:
            return self.value(entry, given, name)
        self.problems.append(f"{name} is not set: give it as {name}=VALUE")
        return _WRONG

    def subgroup(self, entry: Entry, cls: type, data: Any, name: str) -> Any:
        """Read a nested group; fields with the same key share it."""
        sharing = [other for other in entries(cls) if other.name == entry.name]
        try:
            chosen = [other.group_class(data) for other in sharing]
        except ValueError as error:
            if entry is sharing[0]:
                self.problems.append(str(error))
            return _WRONG
        if entry is sharing[0]:
            self.closed([found for found in chosen if found], data, name, example=entry.key.example)
        make = chosen[sharing.index(entry)]
        return None if make is None else self.made(make, data, name)

    def value(self, entry: Entry, value: Any, name: str) -> Any:
        rule = entry.key
        if entry.takes_auto and isinstance(value, str) and value == AUTO:
            return None if rule.auto else AUTO
        if value is None and entry.optional and not rule.auto:
            return None
        if rule.convert is not None:
            try:
                return rule.convert(value)
            except ValueError as error:
                return self.wrong(name, value, str(error))
            except InputError as error:  # complete messages: they name the key, and may hide the value
                self.problems.extend(error.problems)
                return _WRONG
        found = _typed(entry.kind, rule, value)
        return self.wrong(name, value, rule_text(entry, value)) if found is _WRONG else found

    def wrong(self, name: str, value: Any, rule: str) -> Any:
        self.problems.append(f"{name} = {_short(value)} {rule}")
        return _WRONG


def _between_keys(made: Any) -> list[str]:
    """Return the broken rules between keys of a made value: its class states them as `problems`."""
    found: list[str] = made.problems() if hasattr(made, "problems") else []
    return found


def broken(value: Any, prefix: str = "", *, keys: type | None = None) -> list[str]:
    """Return every rule that the keys of a made value break: of one that was read as plain data, not as keys.

    `keys`: the class that has the rules, where it is not the value's own.
    """
    problems = []
    made: Any = keys or type(value)
    for entry in entries(made):
        held, name, rule = getattr(value, entry.field, None), join(prefix, entry.name), entry.key
        if held is None or (isinstance(held, str) and held == AUTO) or rule.convert is not None:
            continue
        if entry.is_group:
            problems += broken(held, name)
        elif _typed(entry.kind, rule, _as_given(held, rule.scale)) is _WRONG:
            problems.append(f"{name} = {_short(held)} {rule_text(entry)}")
    return problems or _between_keys(value)


def _as_given(held: Any, scale: float) -> Any:
    """Return a value in the unit of its key."""
    if isinstance(held, Mapping):
        return {name: _as_given(each, scale) for name, each in held.items()}
    if isinstance(held, tuple):
        return tuple(_as_given(each, scale) for each in held)
    number = isinstance(held, int | float) and not isinstance(held, bool)
    return held / scale if number and scale != 1 else held


def _typed(kind: Any, rule: Key, value: Any) -> Any:
    """Return the field's value, or _WRONG."""
    origin = get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list | tuple) or (rule.choices and not value):
            return _WRONG
        items = tuple(_typed(get_args(kind)[0], rule, item) for item in value)
        return _WRONG if _WRONG in items else items
    if origin is not None:
        return _typed_mapping(get_args(kind)[1], rule, {} if value is None else value)
    if kind in (int, float):
        return _number(kind, rule, value)
    if not isinstance(value, kind) or (rule.choices and value not in rule.choices):
        return _WRONG
    return value


def _typed_mapping(kind: Any, rule: Key, value: Any) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return _WRONG
    if rule.names is not None and not set(value) <= set(rule.names):
        return _WRONG
    found = {name: _typed(kind, rule, item) for name, item in value.items()}
    return _WRONG if any(item is _WRONG for item in found.values()) else found


def _number(kind: type, rule: Key, value: Any) -> Any:
    whole = kind is int and rule.scale == 1
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return _WRONG
    maximum = rule.maximum if rule.maximum is not None else MOST if whole else LARGEST
    sound = (
        math.isfinite(min(value, LARGEST))
        and value <= maximum
        and (rule.minimum is None or value >= rule.minimum)
        and (rule.above is None or value > rule.above)
        and (rule.below is None or value < rule.below)
    )
    return kind(value * rule.scale) if sound else _WRONG


def rule_text(entry: Entry, value: Any = None) -> str:
    """Return the rule of a key for a message: `must be a whole number, at least 1, or auto`."""
    rule, kind = entry.key, entry.kind
    words = [*(rule.choices or ()), *([AUTO] if entry.takes_auto else [])]
    origin, arguments = get_origin(kind), get_args(kind)
    if rule.choices and origin is None:
        return f"is not one of {', '.join(words)}"
    if kind is bool and entry.takes_auto:
        return "must be true, false or auto"
    if origin is tuple:
        inner = f"some of {', '.join(rule.choices)}" if rule.choices else _plural(arguments[0])
        text = f"must be a list of {inner}"
    elif origin is not None:
        text = f"must give {_plural(arguments[1])}" + (f" for some of {', '.join(rule.names)}" if rule.names else "")
    else:
        text = f"must be {NOUNS[float if rule.scale != 1 else kind]}"
    bounds = "".join(f", {bound}" for bound in bounds_of(entry, value))
    other = "auto" if entry.takes_auto else "null" if entry.optional else ""
    return text + bounds + (f", as {rule.example}" if rule.example else "") + (f", or {other}" if other else "")


def bounds_of(entry: Entry, value: Any = None) -> list[str]:
    """Return the bounds of a number: `at least 1`, `below 1`; also the general maximum if this value exceeds it."""
    rule = entry.key
    maximum = rule.maximum
    if maximum is None and isinstance(value, int | float) and value > MOST:
        maximum = MOST if entry.kind is int and rule.scale == 1 else LARGEST
    found = [("at least", rule.minimum), ("above", rule.above), ("below", rule.below), ("at most", maximum)]
    return [f"{word} {bound:,}" for word, bound in found if bound is not None]


def _plural(kind: Any) -> str:
    return "lists" if get_origin(kind) is tuple else PLURALS.get(kind, "values")


def _short(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _leaves(value: Any, name: str) -> Iterator[str]:
    """Yield the full names of all values in an unknown group; its own name if there are none."""
    if isinstance(value, Mapping) and value:
        for inner, item in value.items():
            yield from _leaves(item, join(name, inner))
    else:
        yield name
