"""Compositions of configuration files, kept for later commands: Hydra's import and one composition are 0.2 s of CPU.

One JSON file for each choice of files, in the user's cache folder (XDG Base Directory Specification). It has the text
of every file that went into it, and counts only as long as each file has that text, Hydra is the same and no file was
added. What an environment variable or a key gives is not in it: interpolations are resolved afterwards, and files of
the user's own with `${…}` are not kept, since a defaults list may have some. A cache that cannot be written or read
is a composition more.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launcher import __version__, env
from launcher.config.folders import is_own
from launcher.files import write_text

FOLDER = "nvlink-launcher/compositions"
MOST = 64  # files


@dataclass(frozen=True)
class Kept:
    """The place of one composition. `key`: all that decides on it but the text of its files."""

    file: Path
    key: list[Any]

    def read(self) -> tuple[dict[str, Any], tuple[Path, ...]] | None:
        """The composition and its files, where it is there and still holds."""
        try:
            found = json.loads(self.file.read_bytes())
            if found["key"] != self.key or any(Path(name).read_text("utf-8") != was for name, was in found["files"]):
                return None
            return dict(found["config"]), tuple(Path(name) for name, _ in found["files"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None

    def write(self, config: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Keep a composition, where JSON has all of it and the folder takes it."""
        with suppress(OSError, ValueError, TypeError):
            texts = {file: file.read_text("utf-8") for file in files}
            if any(is_own(file) and "${" in text for file, text in texts.items()):
                return
            entry = {"key": self.key, "config": config, "files": [(str(f), text) for f, text in texts.items()]}
            text = json.dumps(entry)
            if json.loads(text)["config"] == config:
                write_text(self.file, text)
                _prune(self.file.parent)


def kept(chosen: Sequence[str], files: Sequence[str]) -> Kept | None:
    """Where the composition of these choices is kept; None where none is. `files`: all there are to choose from."""
    folder = _folder()
    if folder is None:
        return None
    hydra = find_spec("hydra")
    origin = str(hydra.origin) if hydra else ""
    written = os.stat(origin).st_mtime_ns if origin else 0  # noqa: PTH116
    key = [__version__, origin, written, list(chosen), list(files)]
    return Kept(folder / f"{zlib.crc32(json.dumps(key).encode()):08x}.json", key)


def _folder() -> Path | None:
    """The folder of this user's; None where there is none that only this user can write to."""
    base, home = env.get("XDG_CACHE_HOME") or "", env.get("HOME") or ""
    if not os.path.isabs(base):  # noqa: PTH117 (the specification: others are ignored)
        base = f"{home}/.cache" if home.startswith("/") else ""
    folder = Path(base) / FOLDER
    try:
        if not base:
            return None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    return folder if found.st_uid == os.getuid() and not found.st_mode & 0o022 else None


def _prune(folder: Path) -> None:
    """Leave the newest."""
    for file in sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)[MOST:]:
        file.unlink(missing_ok=True)
