"""Checkpoint files: names, the content of manifest.json, and the check that a checkpoint is complete.

    step-00000040/manifest.json, rank-00000.bin, …      in the run folder's checkpoints/

A checkpoint is written under a hidden temporary name and renamed when complete: a folder `step-…` is committed.
The manifest has sizes and checksums of all files, the location of each piece of each tensor, and its own digest.
Everything is JSON and raw tensor bytes: reading a checkpoint executes nothing. What ranks find wrong with one is in its
damaged.txt, until they find nothing or one of its files has changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import InputError
from launcher.files import content, write_text
from launcher.text import printable

MANIFEST = "manifest.json"
DAMAGED = "damaged.txt"  # what ranks found when they read a damaged checkpoint
LONGEST_PROBLEM = 500  # characters
VERSION = 2
READABLE = (1, 2)  # 1 has other checksums
PREFIX = "state"  # of all tensor names: one entry for torch.distributed.checkpoint, which logs and checks each entry
_NAME = re.compile(r"step-(\d{8,})")


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def temporary_name(step: int) -> str:
    """Return a hidden name, which no reader mistakes for a checkpoint."""
    return f".saving-{folder_name(step)}"


def doomed_name(step: int) -> str:
    """Return the name of a checkpoint while it is deleted."""
    return f".deleting-{folder_name(step)}"


def rank_file(rank: int) -> str:
    """Return the name of the file that one rank writes."""
    return f"rank-{rank:05d}.bin"


def leftovers(folder: Path) -> list[Path]:
    """Return partially written or deleted checkpoints of a killed run."""
    return [*folder.glob(".saving-*"), *folder.glob(".deleting-*")]


def committed_steps(folder: Path) -> list[int]:
    """Return the steps of committed checkpoints, newest first."""
    names = (_NAME.fullmatch(path.name) for path in folder.glob("step-*") if path.is_dir())
    return sorted((int(name.group(1)) for name in names if name), reverse=True)


@dataclass(frozen=True)
class Newest:
    """The newest good checkpoint; `step` is None if there is none.

    `saved_at`: when it was written, in milliseconds since 1970. `damaged`: newer ones, each with its problem.
    """

    step: int | None = None
    saved_at: int | None = None
    damaged: Mapping[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        unused = "; ".join(
            f"step {step} is not used: {printable(problem, longest=LONGEST_PROBLEM)}"
            for step, problem in self.damaged.items()
        )
        return "; ".join(part for part in (_good(self.step, unused), unused) if part)


def _good(step: int | None, unused: str) -> str:
    if step is None:
        return "no good checkpoint" if unused else ""
    return f"newest {'good ' if unused else ''}checkpoint: step {step}"


def newest_good(folder: Path) -> Newest:
    """Return the newest checkpoint that nothing is known against.

    Reads manifests, sizes, and what ranks found. It reads no tensor: the ranks, which share the work, verify those.
    """
    damaged: dict[int, str] = {}
    for step in committed_steps(folder):
        checkpoint = folder / folder_name(step)
        try:
            problem = known_problem(checkpoint)
            if problem is None:
                return Newest(step, (checkpoint / MANIFEST).stat().st_mtime_ns // 10**6, damaged)
        except OSError as error:  # removed in the meantime
            problem = str(error)
        damaged[step] = problem
    return Newest(damaged=damaged)


def known_problem(folder: Path) -> str | None:
    """Return what is known against a checkpoint without reading its tensors."""
    try:
        files = read_files(folder)
    except InputError as error:
        return str(error)
    problems = (size_problem(folder / name, entry["bytes"]) for name, entry in files.items())
    return next((problem for problem in problems if problem), None) or _found_by_ranks(folder, files)


def size_problem(path: Path, num_bytes: int) -> str | None:
    """Return the problem of a file that should have this many bytes; raises no OSError."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        return f"{path} cannot be read ({getattr(error, 'strerror', error)})"
    if size == num_bytes:
        return None
    return f"{path} has {size} bytes instead of {num_bytes}: it was truncated or not fully written"


def mark_damaged(folder: Path, problems: Sequence[str]) -> None:
    """Record what ranks found, for those who do not read the tensors; a disk that takes no file costs only that."""
    with suppress(OSError):
        write_text(folder / DAMAGED, "".join(f"{problem}\n" for problem in problems))


def mark_good(folder: Path) -> None:
    """Remove the record of damage: ranks have read the checkpoint, and it is good."""
    with suppress(OSError):
        (folder / DAMAGED).unlink(missing_ok=True)


def _found_by_ranks(folder: Path, files: Mapping[str, Any]) -> str | None:
    """Return the record of damage, unless a file was changed after it, as by a repair."""
    mark = folder / DAMAGED
    try:
        since = mark.stat().st_ctime_ns
        if any((folder / name).stat().st_ctime_ns > since for name in (MANIFEST, *files)):
            return None
        return content(mark).decode(errors="replace").strip() or f"{mark} says that it is damaged"
    except OSError:
        return None


def write_manifest(folder: Path, body: Mapping[str, Any]) -> None:
    """Write the manifest with its digest; the caller renames the folder afterwards."""
    text = json.dumps(body, sort_keys=True)
    (folder / MANIFEST).write_text(f'{{"digest": "{_digest(text)}", "body": {text}}}', encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest's body; raises InputError if it is missing, damaged or of another version."""
    path = folder / MANIFEST
    try:
        document = json.loads(content(path))
        body, digest = document["body"], document["digest"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    if not isinstance(body, dict) or digest != _digest(json.dumps(body, sort_keys=True)):
        raise InputError(f"{path} does not match its own digest: it was changed after it was written")
    if body.get("version") not in READABLE:
        versions = " and ".join(map(str, READABLE))
        raise InputError(f"{path} has version {body.get('version')!r}; this launcher reads versions {versions}")
    return body


def read_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the manifest's entry of each file: its size and its checksum; raises InputError as `read_manifest` does."""
    files = read_manifest(folder).get("files")
    entries = list(files.values()) if isinstance(files, dict) else [None]
    if not all(isinstance(entry, dict) and type(entry.get("bytes")) is int for entry in entries):
        raise InputError(f"{folder / MANIFEST} does not list the files with their sizes")
    return dict(files or {})


def check_identity(saved: Mapping[str, Any], now: Mapping[str, Any], *, folder: Path) -> None:
    """Raise InputError with every difference between the job of a checkpoint and this one."""
    before, after = _flat(saved), _flat(now)
    different = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    if different:
        raise InputError(
            [
                f"{folder} was saved with {key}={before.get(key)!r}, this run has {after.get(key)!r}: "
                "give the same, or another run_dir, or train.resume=false"
                for key in different
            ]
        )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
