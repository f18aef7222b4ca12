"""Values that refer to other keys, as `${model.heads}`: resolved by OmegaConf, refused if they grow too large."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from launcher import env
from launcher.errors import InputError
from launcher.text import printable

LONGEST = 100_000  # of a resolved value, in characters
_ONE_THREAD = threading.RLock()  # for what OmegaConf and Hydra keep for the whole process
NAMED = re.compile(r"\$\{(\.*)([\w.]+)\}")


def resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with its interpolations resolved; raises InputError if that is impossible."""
    _Sizes(config).check()
    refused: list[str] = []
    try:
        with _paths_from_the_environment(refused):
            plain = OmegaConf.to_container(OmegaConf.create(dict(config)), resolve=True)
    except OmegaConfBaseException as error:
        why = str(error).strip().splitlines()[0]
        raise InputError(f"the configuration cannot be resolved: {why}") from error
    if refused:
        raise InputError(refused)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


@contextmanager
def _paths_from_the_environment(refused: list[str]) -> Iterator[None]:
    """Let `${oc.env:NAME}` give only paths: the configuration is saved with the run and logged."""

    def value(name: str, default: Any = None) -> Any:
        found = env.get(name)
        if found is not None and not Path(found).is_absolute():
            refused.append(
                f"${{oc.env:{printable(name)}}} is not resolved: the configuration is saved with the run, so only "
                "paths are taken from the environment; write the value, or read the variable in your program "
                "(under Slurm: launch.secrets)"
            )
        return default if found is None else found

    with kept_resolvers():
        _register(value)
        yield


@contextmanager
def kept_resolvers() -> Iterator[None]:
    """Leave OmegaConf's resolvers as they were: they are the whole process's, and a program may have its own.

    One thread at a time.
    """
    with _ONE_THREAD:
        before = dict(BaseContainer._resolvers)
        try:
            yield
        finally:
            BaseContainer._resolvers = before


def _register(resolver: Callable[..., Any]) -> None:
    """Register oc.env. OmegaConf 2.4 renames the function to a name that an older one of another kind had before."""
    register: Any = OmegaConf.register_resolver
    if "replace" not in signature(register).parameters:
        register = OmegaConf.register_new_resolver
    register("oc.env", resolver, replace=True)


class _Sizes:
    """Lengths of resolved values: in a chain where each refers to the previous one twice, they double."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._known: dict[str, int] = {}

    def check(self) -> None:
        for name, value in self._config.items():
            self._size(value, str(name))

    def _size(self, value: Any, name: str) -> int:
        if name not in self._known:
            self._known[name] = 0  # it may refer to itself: OmegaConf reports that
            self._known[name] = self._counted(value, name)
            if self._known[name] > LONGEST:
                raise InputError(f"{name} is, when resolved, longer than {LONGEST:,} characters")
        return self._known[name]

    def _counted(self, value: Any, name: str) -> int:
        if isinstance(value, Mapping):
            return sum(self._size(item, f"{name}.{key}") for key, item in value.items())
        if isinstance(value, list):
            return sum(self._size(item, f"{name}.{i}") for i, item in enumerate(value))
        if not isinstance(value, str):
            return 1
        return len(value) + sum(self._named(name, dots, path) for dots, path in NAMED.findall(value))

    def _named(self, name: str, dots: str, path: str) -> int:
        parents = name.split(".")[: -len(dots)] if dots else []
        parts = [*parents, *path.split(".")]
        found: Any = self._config
        for part in parts:
            found = found.get(part) if isinstance(found, Mapping) else None
        return 0 if found is None else self._size(found, ".".join(parts))
