"""No dependency of ours has a version with a hole that is known, in this environment or in what pyproject.toml admits.

`pip-audit` asks PyPI and OSV for all that is known today, and needs a network; this table is what was found so far.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# package → versions with holes, some of them by name, and why
HOLES = [
    ("torch", "<2.6", ["2.5.1"], "CVE-2025-32434: torch.load runs code of a file despite weights_only"),
    ("transformers", "<5.0.0rc3", ["4.57.0"], "CVE-2026-1839: Trainer loads a pickle with the random state"),
    ("lightning", "<=2.4.0", ["2.4.0"], "VU#252619: checkpoints are pickles"),
    ("lightning", "==2.6.2", ["2.6.2"], "CVE-2026-44484: steals credentials when it is imported"),
    ("lightning", "==2.6.3", ["2.6.3"], "CVE-2026-44484: steals credentials when it is imported"),
    ("deepspeed", "<0.15.1", ["0.15.0"], "CVE-2024-43497: a configuration runs code"),
    ("pyyaml", "<5.4", ["5.3.1"], "CVE-2020-14343: full_load runs code of a text"),
]

# CVE-2026-24747, torch below 2.10: a file corrupts memory in torch.load. The extra `run` admits such versions, for a
# user's own scripts; nothing of ours calls it.
LOADS = re.compile(r"\btorch\.load\(|\bpickle\.loads?\(")


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for texts in (project["dependencies"], *extras) for text in texts]


@pytest.mark.parametrize(("package", "holes", "bad", "why"), HOLES, ids=[f"{h[0]} {h[1]}" for h in HOLES])
def test_no_version_with_a_known_hole_is_installed_or_admitted(
    package: str, holes: str, bad: list[str], why: str
) -> None:
    admitted = [r.specifier for r in requirements() if canonicalize_name(r.name) == package]
    assert admitted, f"{package} is no dependency any more: take its rows out"
    assert not [v for v in bad for range_ in admitted if range_.contains(v)], why
    try:
        installed = version(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed here")
    assert not SpecifierSet(holes).contains(installed, prereleases=True), why


def test_nothing_of_ours_loads_a_pickle() -> None:
    files = [path for folder in ("launcher", "recipes") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    assert [str(path) for path in files if LOADS.search(path.read_text())] == []
