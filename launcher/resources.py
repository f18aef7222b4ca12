"""Where the project's own data lies, next to the package in a checkout and inside it in a wheel; and that of others.

A user's recipes are in `recipes/` where they work. Another package names its own by entry points: a module in the group
`nvlink_launcher.recipes`, a folder of configuration files (cluster/, recipe/, …) in `nvlink_launcher.clusters`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

RECIPE_POINTS, FOLDER_POINTS = "nvlink_launcher.recipes", "nvlink_launcher.clusters"
NAME = re.compile(r"[A-Za-z_]\w*")


@cache
def resource(name: str) -> Path:
    """The folder `configs`, `recipes` or `slurm`."""
    package = Path(__file__).resolve().parent
    inside = package / "_data" / name
    return inside if inside.is_dir() else package.parent / name


def recipe_file(name: str) -> Path | None:
    """The file of a recipe: the user's own, else ours, else that of another package; None if there is none."""
    if not NAME.fullmatch(name):
        return None
    for folder in (Path.cwd() / "recipes", resource("recipes")):
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    return next((Path(origin) for module in _modules(RECIPE_POINTS, name) if (origin := _origin(module))), None)


@cache
def plugin_folders() -> tuple[Path, ...]:
    """The folders of configuration files that other packages bring. To look is 20 ms or more: only where it counts."""
    origins = [origin for module in _modules(FOLDER_POINTS) if (origin := _origin(module))]
    return tuple(Path(origin).parent for origin in origins)


def _modules(group: str, name: str | None = None) -> Iterator[str]:
    from importlib.metadata import entry_points

    points = entry_points(group=group) if name is None else entry_points(group=group, name=name)
    yield from (point.module for point in points)


def _origin(module: str) -> str | None:
    """The file of a module, which is not executed (its parent packages are)."""
    try:
        spec = find_spec(module)
    except ImportError:
        return None
    return spec.origin if spec and spec.has_location else None
