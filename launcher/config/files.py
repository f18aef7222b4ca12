"""Configuration files: the user's own come before ours; invalid YAML is refused with file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.folders import folders, is_own
from launcher.errors import InputError
from launcher.resources import resource

SCHEME = "launcher"
PRIMARY = "_launcher"  # configs/config.yaml, always ours: many training scripts have a file of that name
LARGEST_FILE = 2**20
MOST_VALUES = 20_000
DEEPEST = 20
PACKAGE = re.compile(r"^#\s*@package\s+(\S+)\s*$", re.MULTILINE)
_loaded: ContextVar[list[Path] | None] = ContextVar("configuration files that were loaded", default=None)


@contextmanager
def recorded() -> Iterator[list[Path]]:
    """Record the files that Hydra loads in this context, in order."""
    found: list[Path] = []
    token = _loaded.set(found)
    try:
        yield found
    finally:
        _loaded.reset(token)


def primary() -> None:
    """Let Hydra know the primary configuration, which makes it search all folders; again, as it may have been reset."""
    Plugins.instance().register(_Files)
    store = ConfigStore.instance()
    if f"{PRIMARY}.yaml" not in store.repo:
        store.store(PRIMARY, _primary())


@cache
def _primary() -> Any:
    config = OmegaConf.load(resource("configs") / "config.yaml")
    return OmegaConf.merge(config, {"hydra": {"searchpath": [f"{SCHEME}://"]}})


class _Files(ConfigSource):
    """All configuration folders as one source."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        file = _find(config_path)
        if file is None:
            raise InputError(f"{config_path}.yaml is in none of {', '.join(map(str, folders()))}")
        if (loaded := _loaded.get()) is not None:
            loaded.append(file)
        text = _text(file) if is_own(file) else file.read_text(encoding="utf-8")
        package = PACKAGE.search(text)
        config = _parsed(file, text)
        return ConfigResult(self.provider, self.full_path(), config, {"package": package[1] if package else None})

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return any((folder / config_path).is_dir() for folder in folders())

    def is_config(self, config_path: str) -> bool:
        return _find(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        found = [entry for folder in folders() for entry in (folder / config_path).glob("*")]
        groups = {entry.name for entry in found if entry.is_dir()}
        files = {entry.stem for entry in found if entry.suffix == ".yaml"}
        chosen = {ObjectType.GROUP: groups, ObjectType.CONFIG: files}
        return sorted(groups | files if results_filter is None else chosen[results_filter])


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a user's YAML file; raises InputError if it is not a group of keys, or would explode."""
    plain = OmegaConf.to_container(_parsed(file, _text(file)), resolve=False)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _find(config_path: str) -> Path | None:
    name = f"{config_path.removesuffix('.yaml')}.yaml"
    return next((file for folder in folders() if (file := folder / name).is_file()), None)


def found_files(group: str, name: str, *, depth: int = DEEPEST) -> list[Path]:
    """The file of an entry, after those that it starts from."""
    file = _find(f"{group}/{name}")
    if file is None or depth == 0:
        return []
    config = OmegaConf.to_container(_parsed(file, _text(file)), resolve=False)
    starts = config.get("defaults", []) if isinstance(config, dict) else []
    found: list[Path] = []
    for start in starts:
        if isinstance(start, str) and start != "_self_":
            found += found_files(group, start, depth=depth - 1)
        elif isinstance(start, dict):
            for key, choice in start.items():
                found += found_files(str(key).strip("/").partition("@")[0], str(choice), depth=depth - 1)
    return [*found, file]


def _text(file: Path) -> str:
    """Read a user's file; raises InputError if it is not text or too large."""
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"cannot read {file} ({error.strerror})") from error
    if len(data) > LARGEST_FILE:
        raise _refused(file, 1, "the file is larger than 1 MiB, too large for a configuration")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _refused(file, data[: error.start].count(b"\n") + 1, "not UTF-8: save the file as UTF-8") from error
    try:
        _check_size(file, text)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(file, error) from error
    except yaml.YAMLError as error:
        raise _refused(file, 1, f"not YAML: {str(error).splitlines()[0]}") from error
    return text


def _check_size(file: Path, text: str) -> None:
    """Refuse what is not a group of keys, is nested too deeply, or grows by aliases. Reads the parser's events, so
    that nothing is built."""
    values, sizes, open_anchors = 0, dict[str, int](), list[tuple[str | None, int]]()
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_anchors):
                raise _refused(file, line, f"*{event.anchor} refers to a group that contains it")
            values += sizes.get(event.anchor, 0)
        elif isinstance(event, yaml.NodeEvent):
            if not open_anchors and not isinstance(event, yaml.MappingStartEvent):
                raise _refused(file, line, "the file must be a group of keys, as `name: value`")
            values += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_anchors.append((event.anchor, values))
            elif event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_anchors.pop()
            sizes |= {anchor: values - before + 1} if anchor else {}
        if len(open_anchors) > DEEPEST:
            raise _refused(file, line, f"groups are nested more than {DEEPEST} deep")
        if values > MOST_VALUES:
            raise _refused(file, line, f"more than {MOST_VALUES:,} values, aliases counted")


def _parsed(file: Path, text: str) -> DictConfig:
    try:
        config = OmegaConf.load(StringIO(text))
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(file, error) from error
    except (OmegaConfBaseException, ValueError, TypeError, OverflowError) as error:  # hidden: !!int abc
        raise InputError(f"{file}: {str(error).strip().splitlines()[0]}") from error
    if not isinstance(config, DictConfig):
        raise _refused(file, 1, "the file must be a group of keys, as `name: value`")
    _check_defaults(file, text, config)
    return config


def _check_defaults(file: Path, text: str, config: DictConfig) -> None:
    """Refuse a defaults list that Hydra cannot process."""
    if "defaults" not in config:
        return
    entries = OmegaConf.to_container(config, resolve=False)["defaults"]  # type: ignore[index,call-overload]
    line = next((i for i, found in enumerate(text.splitlines(), 1) if found.startswith("defaults")), 1)
    if not isinstance(entries, list):
        raise _refused(file, line, f"defaults must be a list, as `defaults: [{entries}, _self_]`")
    for entry in entries:
        one = isinstance(entry, dict) and len(entry) == 1 and isinstance(next(iter(entry.values())), str | list | None)
        if not isinstance(entry, str) and not one:
            raise _refused(file, line, f"an entry of defaults is a name or `group: name`, not {entry!r}")
        if isinstance(entry, str) and entry.startswith("/base/cluster"):
            raise _refused(file, line, f"take {entry} out of defaults: every key has its default without it")
        if entry == file.stem:
            raise _refused(file, line, f"defaults refer to {entry}, which is this file: rename it")


def _not_yaml(file: Path, error: yaml.MarkedYAMLError) -> InputError:
    mark = error.problem_mark or error.context_mark
    return _refused(file, mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}")


def _refused(file: Path, line: int, why: str) -> InputError:
    return InputError(f"{file}, line {line}: {why}")
