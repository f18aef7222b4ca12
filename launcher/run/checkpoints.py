"""Checkpoint files: names, the content of manifest.json, and the check that a checkpoint is complete.

    step-00000040/manifest.json, rank-00000.bin, …      in the run folder's checkpoints/

A checkpoint is written under a hidden temporary name and renamed when complete: a folder `step-…` is committed.
The manifest has sizes and checksums of all files, the location of each piece of each tensor, and its own digest.
Everything is JSON and raw tensor bytes: reading a checkpoint executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import InputError

MANIFEST = "manifest.json"
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


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest committed checkpoint; None if there is none."""
    return next(iter(committed_steps(folder)), None)


def write_manifest(folder: Path, body: Mapping[str, Any]) -> None:
    """Write the manifest with its digest; the caller renames the folder afterwards."""
    text = json.dumps(body, sort_keys=True)
    (folder / MANIFEST).write_text(f'{{"digest": "{_digest(text)}", "body": {text}}}', encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest's body; raises InputError if it is missing, damaged or of another version."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        body, digest = document["body"], document["digest"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    if not isinstance(body, dict) or digest != _digest(json.dumps(body, sort_keys=True)):
        raise InputError(f"{path} does not match its own digest: it was changed after it was written")
    if body.get("version") not in READABLE:
        versions = " and ".join(map(str, READABLE))
        raise InputError(f"{path} has version {body.get('version')!r}; this launcher reads versions {versions}")
    return body


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
