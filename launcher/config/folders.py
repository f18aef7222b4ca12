"""Where configuration files are: a user's own folder, then ours."""

from __future__ import annotations

from pathlib import Path

from launcher.resources import resource


def folders() -> list[Path]:
    """The folders of configuration files: `configs` in the current folder is the user's own, and comes first."""
    ours, own = resource("configs"), Path.cwd() / "configs"
    return [own, ours] if own.is_dir() and not own.samefile(ours) else [ours]


def is_own(file: Path) -> bool:
    """Whether a configuration file is a user's."""
    return resource("configs") not in file.parents
