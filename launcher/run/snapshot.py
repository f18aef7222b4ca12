"""A copy of the code in the run folder, from which a run works (launch.snapshot): later edits change nothing in it.

Code is copied; whatever else is next to it (data, environments, checkpoints, all that git ignores) is linked, so that
relative paths lead where they did.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from launcher.errors import InputError
from launcher.files import write_text
from launcher.run.code import CodeFiles, stays, unpack
from launcher.run.folder import RunFolder

NOT_LINKED = ".git"  # what it says of the code changes with the original


@dataclass(frozen=True)
class Snapshot:
    """Code that was copied: `root` is now at `copy`."""

    root: Path
    copy: Path

    def of(self, path: Path) -> Path:
        """Where a path of the code is in the copy; a path that is not in it stays."""
        return self.copy / path.relative_to(self.root) if path.is_relative_to(self.root) else path

    def search_path(self, entries: Sequence[str]) -> list[str]:
        """The entries of a search path for modules that were copied, as they are in the copy."""
        found = [self.of(Path(entry)) for entry in entries if entry and Path(entry).is_relative_to(self.root)]
        return [str(path) for path in found if path.is_dir() and path.resolve().is_relative_to(self.copy.resolve())]


def take_snapshot(code: CodeFiles, folder: RunFolder) -> Snapshot:
    """Copy the code into a run folder; what the run has saved there since an earlier copy stays.

    Raises InputError where a file cannot be read or written.
    """
    copy = Path(os.path.abspath(folder.code))  # noqa: PTH100 (no ".." may lead through a link)
    try:
        _forget(copy, folder.code_files, code.files)
        for name in code.files:
            _copy_file(code.root, name, copy)
        _link_others(code.root, copy, run=copy.parent)
        write_text(folder.code_files, "".join(f"{name}\0" for name in code.files))
    except OSError as error:
        raise InputError(f"the code cannot be copied to {copy} ({error.filename}: {error.strerror})") from error
    return Snapshot(code.root, copy)


def copied_code(folder: RunFolder) -> CodeFiles:
    """The code that a run folder has a copy of."""
    names = folder.code_files.read_text(encoding="utf-8").split("\0")
    sizes = [(folder.code / name).lstat().st_size for name in filter(None, names)]
    return CodeFiles(root=folder.code, files=tuple(filter(None, names)), num_bytes=sum(sizes))


def place_snapshot(packed: IO[bytes], folder: RunFolder, *, original: Path, incoming: str) -> None:
    """Put a copy that was packed on another machine into a run folder here, linked to what else is at `original`.

    Hosts that share the folder may do so at once, each by way of a folder `incoming`: a file is whole or not there.
    Raises OSError, tarfile.TarError.
    """
    copy, arrived = Path(os.path.abspath(folder.code)), folder.path / incoming  # noqa: PTH100
    shutil.rmtree(arrived, ignore_errors=True)
    unpack(packed, arrived)
    names = [str(path.relative_to(arrived)) for path in arrived.rglob("*") if path.is_symlink() or not path.is_dir()]
    _forget(copy, folder.code_files, names)
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (arrived / name).replace(copy / name)
    shutil.rmtree(arrived)
    if original.is_dir():
        _link_others(original, copy, run=copy.parent)
    write_text(folder.code_files, "".join(f"{name}\0" for name in names))


def _forget(copy: Path, noted: Path, names: Sequence[str]) -> None:
    """Delete the files of an earlier copy that the code no longer has."""
    before = set(noted.read_text(encoding="utf-8").split("\0")) if noted.is_file() else set[str]()
    for name in before - {*names, ""}:
        (copy / name).unlink(missing_ok=True)


def _copy_file(root: Path, name: str, copy: Path) -> None:
    source, target = root / name, copy / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink() if stays(source, root) else source.resolve())
    else:
        shutil.copy2(source, target)


def _link_others(original: Path, copy: Path, *, run: Path) -> None:
    """Link what is in a folder and not in its copy; the run's own folder is left out, for it has the copy."""
    for entry in os.scandir(original):
        path, target = original / entry.name, copy / entry.name
        if entry.name == NOT_LINKED or path == run:
            continue
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_folder and run.is_relative_to(path):
            target.mkdir(exist_ok=True)
        if is_folder and target.is_dir() and not target.is_symlink():
            _link_others(path, target, run=run)
        elif not os.path.lexists(target):
            with suppress(FileExistsError):  # another host, which shares the folder
                target.symlink_to(path)
