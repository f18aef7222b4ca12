"""Read Hydra configuration into frozen values.

Hydra composes the files that are chosen; that takes a fifth of a second, so that each choice is composed once as long
as no file changes (`kept.py`). Values of keys are set on the result. `launcher.schema` reads it, defaults included.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from launcher.config import hf
from launcher.config import overrides as words
from launcher.config.folders import folders, is_own, use_plugins, with_config_dir
from launcher.config.kept import kept
from launcher.config.settings import Configuration, Settings, settings_of, with_defaults
from launcher.errors import InputError
from launcher.garbage import no_garbage_collection
from launcher.resources import resource
from launcher.schema import entries, names, nearest

DEEPEST_GROUP = 3  # levels of folders in a group


@dataclass(frozen=True)
class _Composed:
    """The content of the chosen files, interpolations unresolved, with the list of files and notes for the user."""

    config: Mapping[str, Any]
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def load(overrides: Sequence[str]) -> Settings:
    """Return the settings of these Hydra overrides; raises InputError with everything that is wrong."""
    overrides, notes = hf.expanded(overrides)
    with no_garbage_collection(), with_config_dir(overrides):
        given, composed = _given(overrides)
        try:
            return settings_of(given, notes=(*composed.notes, *notes))
        except InputError as error:
            raise InputError([_located(problem, overrides, composed.files) for problem in error.problems]) from error


def from_config(config: Mapping[str, Any]) -> Settings:
    """Return the settings of a resolved configuration."""
    return settings_of(config)


def compose_config(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the resolved configuration as plain data, including defaults."""
    with with_config_dir(overrides):
        return with_defaults(_given(hf.expanded(overrides)[0])[0])


def config_text(overrides: Sequence[str], *, resolve: bool = False, package: str | None = None) -> str:
    """The configuration as YAML, as `--cfg job` shows it: with ${…} as written or its value, all of it or a part."""
    with with_config_dir(overrides):
        found: Any = with_defaults(_given(hf.expanded(overrides)[0], resolve=resolve)[0])
    if package is None:
        return as_yaml(found)
    for name in package.split("."):
        if not isinstance(found, Mapping) or name not in found:
            raise InputError(f"--package {package} is no part of the configuration: give one such as cluster.node")
        found = found[name]
    text = as_yaml(found) if isinstance(found, Mapping) else f"{found}\n"
    return f"# @package {package}\n{text}"


@dataclass(frozen=True)
class Sources:
    """Where a configuration comes from: folders in the order in which they are looked through, files, and notes."""

    folders: tuple[Path, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def sources(overrides: Sequence[str]) -> Sources:
    """Where the configuration of these overrides comes from, as `--info` shows it."""
    words, notes = hf.expanded(overrides)
    with with_config_dir(words):
        composed = _given(words)[1]
        return Sources(tuple(folders()), composed.files, (*composed.notes, *notes))


def as_yaml(config: Mapping[str, Any]) -> str:
    """Return a configuration as YAML; raises InputError where a ${…} in it is not one."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_yaml(OmegaConf.create(dict(config)))
    except OmegaConfBaseException as error:
        why = str(error).strip().splitlines()[0]
        raise InputError(
            f"the configuration has a ${{…}} that cannot be read ({why}): close it, or escape it as \\${{"
        ) from error


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Return every combination of a multirun: `cluster=a,b layout.tp=1,2` gives four lists of overrides."""
    return words.combinations(overrides, lambda group: choices(overrides).get(group, []))


def choices(overrides: Sequence[str] = ()) -> dict[str, list[str]]:
    """The entries of every configuration group, the user's own folders included."""
    with with_config_dir(overrides):
        index = _index(_stamp())
    groups = dict.fromkeys(entry.name for entry in entries(Configuration) if entry.is_group)
    return {group: list(index[group]) for group in groups}


def keys(overrides: Sequence[str] = ()) -> list[str]:
    """Every key that takes a value, of the configuration that these choices of files compose."""
    with with_config_dir(overrides):
        stamp = _stamp()
        chosen, _ = words.parse(overrides, _index(stamp))
        try:
            return sorted(names(Configuration, data=_composed(tuple(chosen), stamp).config))
        except InputError:  # one is half typed
            return sorted(names(Configuration, data=_composed((), stamp).config))


def _given(overrides: Sequence[str], *, resolve: bool = True) -> tuple[dict[str, Any], _Composed]:
    """Return what files and overrides give together, resolved, and what the files alone give."""
    stamp = _stamp()
    chosen, settings = words.parse(overrides, _index(stamp))
    if any(_is_missing(word, _index(stamp)) for word in chosen) and use_plugins():
        stamp = _stamp()
    _check_choices(chosen, _index(stamp))
    composed = _composed(tuple(chosen), stamp)
    verbatim = [setting for setting in settings if setting.key in words.verbatim_keys()]
    plain = [setting for setting in settings if setting.key not in words.verbatim_keys()]
    found = words.apply(plain, composed.config)
    return words.apply(verbatim, _resolved(found) if resolve else found), composed


def _check_choices(chosen: Sequence[str], known: Mapping[str, Sequence[str]]) -> None:
    split = [(word.lstrip("+").partition("=")) for word in chosen]
    problems = [
        _unknown_choice(value, group, known[group])
        for group, _, value in split
        if group in known and value[:1] != "[" and not _exists(f"{group}/{value}", known)
    ]
    if problems:
        raise InputError(problems)


def _is_missing(word: str, known: Mapping[str, Sequence[str]]) -> bool:
    group, _, value = word.lstrip("+").partition("=")
    return group in known and value[:1] != "[" and not _exists(f"{group}/{value}", known)


def _exists(path: str, known: Mapping[str, Sequence[str]]) -> bool:
    group, _, name = path.rpartition("/")
    return name in known.get(group, ())


def _unknown_choice(value: str, group: str, known: Sequence[str]) -> str:
    close = nearest(value, known)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{value} is not a known {group}: {hint}(known: {', '.join(known)})"


@lru_cache(maxsize=128)
def _composed(chosen: tuple[str, ...], stamp: tuple[tuple[str, str, int], ...]) -> _Composed:
    """Compose these choices from the files as they are at `stamp`."""
    place = kept(chosen, [path for _, path, _ in stamp])
    found = place.read() if place else None
    if found is None:
        from launcher.config.composition import composed  # Hydra, which most commands can do without

        found = composed(chosen)
        if place:
            place.write(*found)
    config, files = found
    return _Composed(config, files, _notes(files))


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with its interpolations resolved, if there are any; they may refer to defaults."""
    if "${" not in repr(config):
        return config
    from launcher.config.interpolation import resolved

    return resolved(with_defaults(config))


def _stamp() -> tuple[tuple[str, str, int], ...]:
    """Return each configuration file by group and path, with its modification time: changed files are read again."""
    with os.scandir(folders()[-1]) as found:
        groups = [entry.name for entry in found if entry.is_dir()]
    return tuple(entry for folder in folders() for group in groups for entry in _written(f"{folder}/{group}", group))


def _written(folder: str, group: str) -> Iterator[tuple[str, str, int]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir() and group.count("/") < DEEPEST_GROUP:
                    yield from _written(entry.path, f"{group}/{entry.name}")
                elif entry.name.endswith(".yaml") and entry.is_file():  # not a dangling link
                    yield group, entry.path, entry.stat().st_mtime_ns
    except FileNotFoundError:
        return  # the user's folder need not have every group
    except OSError as error:
        raise InputError(f"cannot read {folder} ({error.strerror})") from error


@lru_cache(maxsize=8)
def _index(stamp: tuple[tuple[str, str, int], ...]) -> dict[str, tuple[str, ...]]:
    """Return the names of the files of every group."""
    found: dict[str, set[str]] = {}
    for group, path, _ in stamp:
        found.setdefault(group, set()).add(Path(path).stem)
    return {group: tuple(sorted(names)) for group, names in found.items()}


def _notes(files: Sequence[Path]) -> tuple[str, ...]:
    """List the user's own files that were read instead of ours and differ: a clone of the project has the same ones."""
    ours = resource("configs")
    own = [folder for folder in folders() if folder != ours]
    found = [(file, ours / file.relative_to(folder)) for file in files for folder in own if file.is_relative_to(folder)]
    return tuple(
        f"your configs/{shipped.relative_to(ours)} is read instead of the launcher's own"
        for file, shipped in found
        if shipped.exists() and shipped.read_bytes() != file.read_bytes()
    )


def _located(problem: str, overrides: Sequence[str], files: Sequence[Path]) -> str:
    """Add file and line to a problem if its key is set in a user's own file."""
    key = re.match(r"[\w.]+", problem)
    if key and "is not a known key" in problem and key[0] in words.every_key():
        where = " or ".join(f"launch={place}" for place in words.places_of(key[0]))
        problem = f"{key[0]} is a key with {where}, and not where this run starts: choose that, or leave it out"
    if (
        key is None
        or "is not set" in problem
        or any(key[0] == word.lstrip("+~").partition("=")[0] for word in overrides)
    ):
        return problem
    name = re.compile(rf"(^|[\s{{,]){re.escape(key[0].rpartition('.')[2])}\s*:")
    lines = [(file, i) for file in files if is_own(file) for i, line in enumerate(_lines(file), 1) if name.search(line)]
    return f"{problem} ({lines[0][0]}, line {lines[0][1]})" if len(lines) == 1 else problem


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
