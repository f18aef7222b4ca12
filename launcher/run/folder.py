"""The run folder: one per job, everything about it in one place.

plan.json  config.yaml  nodes/node-<n>.json  logs/rank-<r>.log  ledger.jsonl  metrics.jsonl  result.json  checkpoints/
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import InputError

LEDGER_FILE = "ledger.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """Names inside a run folder."""

    path: Path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def ledger(self) -> Path:
        return self.path / LEDGER_FILE

    def node_state(self, node: int) -> Path:
        """What the agent of a node knows of the run (`write_json`), for `launcher status`."""
        return self.path / "nodes" / f"node-{node}.json"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"


def utc_now() -> str:
    """The time as people write it, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def default_name(name: str, *, now: float | None = None) -> str:
    """`gpt-20250131-235959`: what the run is, and when it began (UTC)."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}"


def create_run_folder(path: Path) -> RunFolder:
    """Make the folder and its logs folder; it may exist already (a resumed run).

    Raises InputError where it cannot be made or written.
    """
    folder = RunFolder(path)
    try:
        folder.logs.mkdir(parents=True, exist_ok=True)
        (path / "nodes").mkdir(exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write the run folder {path} ({error.strerror}): give another with run_dir=FOLDER"
        ) from error
    return folder


def new_run_folder(name: str, *, parent: Path = Path("runs")) -> RunFolder:
    """A run folder that did not exist before: two runs in the same second get two folders."""
    base = parent / default_name(name)
    for attempt in range(1000):
        path = base if attempt == 0 else base.with_name(f"{base.name}-{attempt + 1}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(
                f"cannot make the run folder {path} ({error.strerror}): give one with run_dir=FOLDER"
            ) from error
        return create_run_folder(path)
    raise InputError(f"{base} and 999 folders after it exist already: give one with run_dir=FOLDER")


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all: readers never see half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """`write_text` of one JSON document."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def append_line(path: Path, data: Mapping[str, Any]) -> None:
    """Add one JSON line by a single write, so that several writers do not mix theirs."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(fd, (json.dumps(data) + "\n").encode())
    finally:
        os.close(fd)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file; an unfinished last line is left out, an absent file has none."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def tail(path: Path, *, num_lines: int, max_bytes: int = 65536) -> list[str]:
    """The last lines of a log, without reading all of it; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-num_lines:]
