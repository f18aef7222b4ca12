"""Location of the project's data: next to the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def resource(name: str) -> Path:
    """Return the folder `configs`, `recipes` or `slurm`."""
    package = Path(__file__).resolve().parent
    inside = package / "_data" / name
    return inside if inside.is_dir() else package.parent / name
