"""Checkpoints as files: their names, what each says about itself in manifest.json, and the check that one is whole.

    step-00000040/manifest.json, rank-00000.bin, …      in the run folder's checkpoints/

A checkpoint is written under a hidden temporary name and renamed when complete: a folder `step-…` is committed.
The manifest holds sizes and SHA-256 of all files, where each piece of each tensor lies, and a digest of itself.
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
VERSION = 1
PREFIX = "state"  # of all tensor names: one entry for torch.distributed.checkpoint, which logs and looks at each
_NAME = re.compile(r"step-(\d{8,})")
_CHUNK_BYTES = 1 << 20


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def temporary_name(step: int) -> str:
    """Hidden, so that no reader takes it for a checkpoint."""
    return f".saving-{folder_name(step)}"


def doomed_name(step: int) -> str:
    """What a checkpoint is called while it is deleted."""
    return f".deleting-{folder_name(step)}"


def rank_file(rank: int) -> str:
    """The file of a checkpoint that one rank writes."""
    return f"rank-{rank:05d}.bin"


def leftovers(folder: Path) -> list[Path]:
    """What a killed run left half written or half deleted."""
    return [*folder.glob(".saving-*"), *folder.glob(".deleting-*")]


def committed_steps(folder: Path) -> list[int]:
    """Steps of the committed checkpoints, newest first."""
    names = (_NAME.fullmatch(path.name) for path in folder.glob("step-*") if path.is_dir())
    return sorted((int(name.group(1)) for name in names if name), reverse=True)


def newest_step(folder: Path) -> int | None:
    """The step of the newest committed checkpoint; None where there is none."""
    return next(iter(committed_steps(folder)), None)


def write_manifest(folder: Path, body: Mapping[str, Any]) -> None:
    """Write the manifest with its digest; the caller renames the folder afterwards."""
    text = json.dumps(body, sort_keys=True)
    (folder / MANIFEST).write_text(f'{{"digest": "{_digest(text)}", "body": {text}}}', encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest's body; raises InputError naming the file where it is missing, damaged or of another version."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        body, digest = document["body"], document["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    if not isinstance(body, dict) or digest != _digest(json.dumps(body, sort_keys=True)):
        raise InputError(f"{path} does not match its own digest: it was changed after it was written")
    if body.get("version") != VERSION:
        raise InputError(f"{path} has version {body.get('version')!r}; this launcher reads version {VERSION}")
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


def file_problem(folder: Path, name: str, expected: Mapping[str, Any]) -> str | None:
    """What is wrong with one file of a checkpoint, or None."""
    path = folder / name
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    if size != expected["bytes"]:
        return f"{path} has {size} bytes instead of {expected['bytes']}: it was cut or not written to its end"
    if sha256(path) != expected["sha256"]:
        return f"{path} has another checksum than when it was written: it was changed or the disk is failing"
    return None


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
