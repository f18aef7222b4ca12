"""Which files are the code of a folder: those that git has or would add, or those that patterns name.

What a run copies at its submission (snapshot.py), and what is sent to another machine.
"""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from launcher import env
from launcher.capture import capture
from launcher.errors import InputError
from launcher.run.folder import RunFolder
from launcher.units import format_bytes

GIT_S = 60.0  # a large repository on a slow file system
MOST_BYTES = 256 * 2**20  # more is data, which a copy for each run would multiply
LARGEST_NAMED = 3
PATTERNS = "launch.code=['*.py','configs/**']"


@dataclass(frozen=True, kw_only=True)
class CodeFiles:
    """Files with their paths relative to `root`: the top of the repository, or the folder that patterns start from."""

    root: Path
    files: tuple[str, ...]
    num_bytes: int

    def describe(self) -> str:
        return f"{len(self.files)} files, {format_bytes(self.num_bytes)}, of {self.root}"


def find_code(folder: Path, patterns: Sequence[str] = ()) -> CodeFiles:
    """Return the code of a folder; raises InputError where it cannot be found, is nothing, or is too large."""
    root, names = _by_patterns(folder, patterns) if patterns else _by_git(folder)
    sizes = {name: found.st_size for name in names if (found := _file(root / name))}
    if not sizes:
        raise InputError(f"there is no code to copy in {folder}: name its files by {PATTERNS}")
    if (total := sum(sizes.values())) > MOST_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:LARGEST_NAMED]
        named = ", ".join(f"{name} ({format_bytes(sizes[name])})" for name in largest)
        raise InputError(
            f"the code of {root} has {format_bytes(total)}, and at most {format_bytes(MOST_BYTES)} are copied: let git "
            f"ignore what is data ({named}), or name the code by {PATTERNS}"
        )
    return CodeFiles(root=root, files=tuple(sorted(sizes)), num_bytes=total)


def _file(path: Path) -> os.stat_result | None:
    """What there is to copy at a path: a file or a link."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode) else None


def _by_patterns(folder: Path, patterns: Sequence[str]) -> tuple[Path, list[str]]:
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = [path for path in folder.glob(_whole(pattern)) if not path.is_dir()]
        if not matches:
            raise InputError(f"launch.code has {pattern!r}, which matches no file in {folder}")
        found |= dict.fromkeys(str(path.relative_to(folder)) for path in matches)
    return folder, list(found)


def _whole(pattern: str) -> str:
    """A pattern that ends in ** means all files below, as it does for git."""
    return f"{pattern}/*" if pattern.endswith("**") else pattern


def _by_git(folder: Path) -> tuple[Path, list[str]]:
    """The files that git has or would add, those of submodules too, without what other runs have written."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        raise InputError(f"{folder} is in no git repository: name the files of its code by {PATTERNS}")
    root = Path(top.strip())
    return root, list(_without_runs(root, _listed(root)))


def _listed(root: Path) -> Iterable[str]:
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is None:
        raise InputError(f"git cannot list the files of {root}: name them by {PATTERNS}")
    for name in dict.fromkeys(filter(None, listed.split("\0"))):
        if (root / name).is_dir() and not (root / name).is_symlink():  # a submodule, or a repository inside
            if (root / name / ".git").exists():
                yield from (f"{name.rstrip('/')}/{inner}" for inner in _listed(root / name))
        else:
            yield name


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where it fails, as outside of a repository."""
    try:
        said = capture(("git", "-C", str(folder), *words), environment=env.environment(), timeout_s=GIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.out if said.code == 0 else None


def _without_runs(root: Path, names: Iterable[str]) -> Iterable[str]:
    known: dict[str, bool] = {"": False}

    def in_run(folder: str) -> bool:
        if folder not in known:
            known[folder] = RunFolder(root / folder).owner.is_file() or in_run(folder.rpartition("/")[0])
        return known[folder]

    return (name for name in names if not in_run(name.rpartition("/")[0]))


def stays(link: Path, root: Path) -> bool:
    """Whether a link leads into the code by a relative path, so that it means the same in the copy."""
    to = link.readlink()
    return not to.is_absolute() and Path(os.path.normpath(link.parent / to)).is_relative_to(root)


def pack(code: CodeFiles) -> bytes:
    """The files as a compressed archive; links that lead out of the code become what they lead to."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in code.files:
            path = code.root / name
            archive.add(path.resolve() if path.is_symlink() and not stays(path, code.root) else path, name)
    return stream.getvalue()


def unpack(stream: IO[bytes], folder: Path) -> None:
    """The inverse of `pack`, from a stream; nothing is written outside of the folder."""
    with tarfile.open(fileobj=stream, mode="r|gz") as archive:
        archive.extractall(folder, filter="data")
