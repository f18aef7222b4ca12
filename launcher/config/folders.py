"""Where configuration files are: a user's own folders, then ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from launcher.errors import InputError
from launcher.files import user_path
from launcher.resources import plugin_folders, resource

NAMES_FOLDER = "config_dir="
_named: ContextVar[Path | None] = ContextVar("the folder that config_dir= names", default=None)
_plugins: ContextVar[tuple[Path, ...]] = ContextVar("the folders of other packages, once they were wanted", default=())


def folders() -> list[Path]:
    """The folders of configuration files, the user's own first: that of config_dir=, then `configs` where they work."""
    ours, named = resource("configs"), _named.get()
    own = [folder for folder in (named, Path.cwd() / "configs") if folder is not None and folder.is_dir()]
    return [*(folder for folder in own if not folder.samefile(ours)), *_plugins.get(), ours]


def use_plugins() -> bool:
    """From now on look at the folders of other packages too; returns whether there are any that were not looked at."""
    if _plugins.get() or not plugin_folders():
        return False
    _plugins.set(plugin_folders())
    return True


@contextmanager
def with_config_dir(words: Sequence[str]) -> Iterator[None]:
    """Use the folder that these overrides name by config_dir=; raises InputError if it is none."""
    given = [word.removeprefix(NAMES_FOLDER) for word in words if word.startswith(NAMES_FOLDER)]
    path = user_path(given[-1]).absolute() if given and given[-1] != "null" else _named.get()
    if path is not None and not path.is_dir():
        raise InputError(f"config_dir={given[-1]} is not a folder: give one with folders such as cluster/ and model/")
    token = _named.set(path)
    try:
        yield
    finally:
        _named.reset(token)


def is_own(file: Path) -> bool:
    """Whether a configuration file is a user's."""
    return resource("configs") not in file.parents
