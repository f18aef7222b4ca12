"""Stale locks of compiled extensions: a process that loads the extension waits for them silently.

torch.utils.cpp_extension, with which DeepSpeed compiles operators at first use, creates a file `lock` in the folder
of the extension and removes it at the end (torch 2.13, torch/utils/file_baton.py). A process that is killed before
leaves it, and every later process waits forever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.files import user_path
from launcher.preflight.findings import Finding, Level

LOCK = "lock"


@dataclass(frozen=True)
class ExtensionLock:
    """A lock. `held`: a process of this machine has it open, as far as this user can see."""

    path: Path
    age_s: float
    held: bool


def extensions_folder(environment: Mapping[str, str]) -> Path:
    """Return torch's folder of compiled extensions (torch.utils.cpp_extension._get_build_directory)."""
    if given := environment.get("TORCH_EXTENSIONS_DIR"):
        return Path(given)
    home = environment.get("HOME") or user_path("~")
    return Path(environment.get("XDG_CACHE_HOME") or Path(home) / ".cache") / "torch_extensions"


def extension_locks(environment: Mapping[str, str]) -> list[ExtensionLock]:
    """Return every lock, the oldest first."""
    folder = extensions_folder(environment)
    paths = [*folder.glob(f"*/{LOCK}"), *folder.glob(f"*/*/{LOCK}")]  # by Python and CUDA version, unless set
    open_files = _open_files() if paths else set()
    found = [ExtensionLock(path, _age_s(path), str(path.resolve()) in open_files) for path in paths]
    return sorted(found, key=lambda lock: -lock.age_s)


def lock_findings(environment: Mapping[str, str]) -> list[Finding]:
    """Return a warning for each stale lock."""
    return [
        Finding(
            Level.WARNING,
            "compiled extensions",
            f"{lock.path} is {_words(lock.age_s)} old and no process of this machine holds it: every process "
            f"that loads {lock.path.parent.name} would wait for it silently. Unless another machine compiles it "
            "now, remove that file, or set TORCH_EXTENSIONS_DIR to a folder of the job's own",
        )
        for lock in extension_locks(environment)
        if not lock.held
    ]


def _words(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _age_s(path: Path) -> float:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:  # just removed
        return 0.0


def _open_files() -> set[str]:
    """Return the open files of processes that this user may inspect."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            found |= {os.readlink(entry) for entry in os.scandir(folder)}  # noqa: PTH115 (many, and at each start)
        except OSError:  # another user's process, or it has ended
            continue
    return found
