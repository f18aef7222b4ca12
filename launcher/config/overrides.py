"""Command line overrides in Hydra's grammar: choices of a group's file, settings of keys, sweeps."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

from launcher.config.settings import Configuration, merged
from launcher.errors import InputError
from launcher.schema import Entry, names, unknown_key, walk

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

PLAIN_NAME = re.compile(r"[A-Za-z_]\w*")
# Of Hydra's grammar what most overrides are: a whole or a decimal number, a word. A test holds it to Hydra's parser.
PLAIN_SETTING = re.compile(
    r"(?P<key>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)="
    r"(?:(?P<whole>-?(?:0|[1-9]\d*))|(?P<decimal>-?(?:0|[1-9]\d*)\.\d+)|(?P<word>[A-Za-z]\w*))",
    re.ASCII,
)
CONSTANTS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class Setting:
    """One override of a key; `sign` is its prefix (+, ++, ~ or none)."""

    word: str
    sign: str
    key: str
    value: Any


PLACES = ("slurm", "ssh")  # that have keys of their own


@lru_cache(maxsize=1)
def every_key() -> Mapping[str, Entry]:
    """Every key, those of Slurm and ssh included, but for those of recipes other than the default one."""
    return {name: entry for place in PLACES for name, entry in _keys_with(place).items()}


def places_of(name: str) -> tuple[str, ...]:
    """The values of launch.place with which there is such a key; none for a key that is always there."""
    if name in _keys_with("local"):
        return ()
    return tuple(place for place in PLACES if name in _keys_with(place))


@cache
def _keys_with(place: str) -> Mapping[str, Entry]:
    return dict(walk(Configuration, data={"launch": {"place": place}}))


@lru_cache(maxsize=1)
def verbatim_keys() -> frozenset[str]:
    """Return the keys with literal values, outside Hydra's grammar: paths, why_not=tp=4,pp=16, sbatch options."""
    return frozenset(name for name, entry in every_key().items() if entry.key.verbatim)


def parse(words: Iterable[str], groups: Iterable[str]) -> tuple[list[str], list[Setting]]:
    """Split words into choices of files for Hydra and settings of keys; raises InputError with all malformed words."""
    choices: list[str] = []
    settings: list[Setting] = []
    problems: list[str] = []
    for word in words:
        group, _, name = word.partition("=")
        if group in groups and PLAIN_NAME.fullmatch(name):  # Hydra parses it
            choices.append(word)
            continue
        try:
            parsed = _setting(word)
        except InputError as error:
            problems.extend(error.problems)
            continue
        if "@" in parsed.key or (parsed.key in groups and not isinstance(parsed.value, dict)):
            choices.append(word)
        else:
            settings.append(parsed)
    if problems:
        raise InputError(problems)
    return choices, settings


@lru_cache(maxsize=4096)
def _setting(word: str) -> Setting:
    if (found := _verbatim(word)) is not None:
        return found
    if (found := _plain(word)) is not None:
        return found
    parsed = _parsed(word)
    if parsed.is_sweep_override():
        key, _, value = word.partition("=")
        raise InputError(f"{word} gives several values: sweep with -m, or quote what is one value: \"{key}='{value}'\"")
    key = parsed.key_or_group if parsed.package is None else f"{parsed.key_or_group}@{parsed.package}"
    sign = parsed.get_key_element().removesuffix(key)
    return Setting(word, sign, key, parsed.value())


def _verbatim(word: str) -> Setting | None:
    key, equals, value = word.partition("=")
    if not equals or key not in verbatim_keys() or value[:1] in ("'", '"'):
        return None
    return Setting(word, "", key, None if value == "null" else value)


def _plain(word: str) -> Setting | None:
    """A setting that is read the same without Hydra's parser, which takes 0.1 s to import."""
    match = PLAIN_SETTING.fullmatch(word)
    if match is None:
        return None
    whole, decimal, text = match["whole"], match["decimal"], match["word"]
    if text is not None and text.lower() in ("inf", "nan"):
        return None
    value = int(whole) if whole else float(decimal) if decimal else CONSTANTS.get(text.lower(), text)
    return Setting(word, "", match["key"], value)


def _parsed(word: str) -> Override:
    from hydra.errors import HydraException

    try:
        return _by_hydra(word)
    except HydraException as error:
        why, quoted = str(error).strip().splitlines()[0], _quoted(word)
        remedy = f"write {quoted}" if quoted else "write key=value, close brackets, quote special characters"
        raise InputError(f"{word} is not an override ({why}): {remedy}") from error


def _by_hydra(word: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from launcher.config.composition import own_state

    with own_state():
        return OverridesParser.create().parse_override(word)


def _quoted(word: str) -> str | None:
    """A word with the quotes that Hydra needs, as a shell takes it; None where quotes do not make it an override."""
    from hydra.errors import HydraException

    key, equals, value = word.partition("=")
    if not equals or (value[:1] + value[-1:] not in ("[]", "{}") and value[:1] in ("[", "{")):
        return None
    better = f"{key}={_with_quotes(value)}"
    try:
        _by_hydra(better)
    except HydraException:
        return None
    return shlex.quote(better) if set(better) & set('"$`\\!') else f'"{better}"'


def _with_quotes(value: str) -> str:
    """Quote a text, or the items of a list or the values of a mapping that are in brackets."""
    if value[:1] == "[":
        return f"[{','.join(_with_quotes(item.strip()) for item in value[1:-1].split(','))}]"
    if value[:1] == "{":  # a comma that no name follows belongs to a value
        pairs = (pair.partition(":") for pair in re.split(r",\s*(?=[A-Za-z_]\w*\s*:)", value[1:-1]))
        return f"{{{','.join(f'{name.strip()}:{_with_quotes(text.strip())}' for name, _, text in pairs)}}}"
    return value if value[:1] in ("'", '"') else "'{}'".format(value.replace("'", "\\'"))


def apply(settings: Sequence[Setting], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with these keys set; raises InputError for a prefix that does not fit its key."""
    found, problems = dict(config), []
    for setting in settings:
        *groups, last = setting.key.split(".")
        inside = found
        for group in groups:
            inner = inside.get(group)
            inside[group] = inside = dict(inner) if isinstance(inner, Mapping) else {}
        if setting.sign == "~":
            problems += [] if last in inside or setting.key in _known(config) else [_unknown(setting.key, config)]
            inside.pop(last, None)
            continue
        if setting.sign == "+" and setting.key in _known(config):
            problems.append(f"+{setting.key}: the key already exists: write {setting.key}=VALUE, without the +")
        before, value = inside.get(last), setting.value
        inside[last] = merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    if problems:
        raise InputError(problems)
    return found


def _known(config: Mapping[str, Any]) -> list[str]:
    return names(Configuration, data=config)


def _unknown(key: str, config: Mapping[str, Any]) -> str:
    return unknown_key(key, _known(config))


def combinations(words: Sequence[str], options: Callable[[str], Sequence[str]]) -> list[list[str]]:
    """Return every combination of a sweep: `cluster=a,b layout.tp=1,2` gives four lists of words. `options` returns
    the names in a group, for `glob(…)`."""
    return [list(chosen) for chosen in product(*(_values(word, options) for word in words))]


def _values(word: str, options: Callable[[str], Sequence[str]]) -> list[str]:
    if _verbatim(word) is not None:
        return [word]
    parsed = _parsed(word)
    if not parsed.is_sweep_override():
        return [word]
    key, value = parsed.get_key_element(), parsed.value()
    from hydra.core.override_parser.types import Glob

    if isinstance(value, Glob):
        found = value.filter(list(options(parsed.key_or_group)))
    elif parsed.is_discrete_sweep():
        found = list(parsed.sweep_string_iterator())
    else:
        raise InputError(f"{word} is not a list of values: give {key}=a,b or {key}=range(1,4)")
    if not found:
        raise InputError(f"{word} matches nothing: known are {', '.join(options(parsed.key_or_group)) or 'no names'}")
    return [f"{key}={text}" for text in found]
