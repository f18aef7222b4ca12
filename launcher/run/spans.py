"""spans/: what a rank did in some steps of a run, from when to when; one file for each rank and step. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from launcher.errors import InputError
from launcher.files import read_json, write_text
from launcher.schema import from_plain, to_plain

# What a span can be, in words. Spans of tp and cp are collectives inside of forward and backward.
SPANS: Mapping[str, str] = MappingProxyType({
    "data": "data",
    "F": "forward",
    "B": "backward",
    "W": "weight gradients",
    "tp": "tensor-parallel collective",
    "cp": "context-parallel collective",
    "dp": "gradients of all replicas",
    "optimizer": "optimizer",
})  # fmt: skip
REMEDY = "remove it, or run again"
_NAME = re.compile(r"step-(\d+)-rank-(\d+)\.json")


@dataclass(frozen=True)
class Span:
    """`kind` is one of SPANS; times are seconds since the rank's step began.

    `stage` and `micro_batch` are None where it belongs to none.
    """

    kind: str
    begin_s: float
    end_s: float
    stage: int | None = None
    micro_batch: int | None = None


@dataclass(frozen=True)
class RankSpans:
    """One step of one rank, counted from 1. `began_at`: seconds since 1970 by the clock of its host."""

    rank: int
    step: int
    host: str
    began_at: float
    step_s: float
    spans: tuple[Span, ...]

    def write(self, path: Path) -> None:
        """Write the file, and its folder. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(to_plain(self)) + "\n")


def read_spans(folder: Path) -> list[RankSpans]:
    """Read every recorded step of a folder, by step and rank; empty if there is none.

    Raises InputError for a damaged file.
    """
    return [_read(path) for path in _files(folder.glob("*.json"))]


def _files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if _NAME.fullmatch(path.name))


def _read(path: Path) -> RankSpans:
    try:
        found = from_plain(RankSpans, read_json(path, remedy=REMEDY))
    except InputError as error:
        raise InputError(f"{path} is not a recorded step ({'; '.join(error.problems[:3])}): {REMEDY}") from error
    wrong = {span.kind for span in found.spans} - set(SPANS)
    if wrong or any(not 0 <= span.begin_s <= span.end_s < float("inf") for span in found.spans):
        why = f"of kind {', '.join(sorted(wrong))}" if wrong else "that ends before it begins"
        raise InputError(f"{path} has a span {why}: {REMEDY}")
    return found
