"""result.json: the result of a recipe. Its last line on stdout is the short form."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from launcher.errors import InputError
from launcher.files import read_json, write_json
from launcher.schema import from_plain

REMEDY = "run the recipe again"
MOST_NAMED = 3  # problems of a damaged file, listed in the message
T = TypeVar("T")


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run. `losses` are those of the steps after `resumed_after_step`, in this process.

    None: unknown, or no steps were left after a resume.
    """

    recipe: str
    engine: str
    layout: Mapping[str, Any]
    world_size: int
    resumed_after_step: int
    losses: tuple[float, ...]
    predicted_step_time_s: float | None
    measured_step_time_s: float | None
    measured_split_s: Mapping[str, float]
    predicted_memory_bytes: float | None
    measured_memory_bytes: int | None
    tokens_per_s: float | None
    mfu: float | None
    stopped: bool = False  # asked to stop before its last step

    def to_dict(self) -> dict[str, Any]:
        """Return plain data as in result.json."""
        return asdict(self) | {"losses": {**self._ends(), "all": list(self.losses)}}

    def short(self) -> dict[str, Any]:
        """Return the document of the last line on stdout."""
        return {
            "recipe": self.recipe,
            "engine": self.engine,
            "layout": dict(self.layout),
            "losses": self._ends(),
            "predicted_step_time_s": self.predicted_step_time_s,
            "measured_step_time_s": self.measured_step_time_s,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainResult:
        """The inverse of `to_dict`; raises KeyError, TypeError or InputError for other data."""
        return from_plain(cls, {**data, "losses": data["losses"]["all"]})

    def _ends(self) -> dict[str, float | None]:
        return {
            "first": self.losses[0] if self.losses else None,
            "last": self.losses[-1] if self.losses else None,
        }


@dataclass(frozen=True)
class NodeRates:
    """GB/s of one node: bus bandwidth inside it, and the best rate to another node, each way.

    The best, because a slow peer says nothing about this node. None if there is nothing to measure.
    """

    host: str
    node: int
    inside_gbytes_per_s: float | None
    between_gbytes_per_s: float | None


@dataclass(frozen=True)
class BandwidthResult:
    """The result of the recipe `bandwidth`: rates of every node, reasons by slow host, hosts to exclude."""

    recipe: str
    bytes: int
    nodes: tuple[NodeRates, ...]
    slow: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data as in result.json."""
        return asdict(self)

    def short(self) -> dict[str, Any]:
        """Return the document of the last line on stdout."""
        named = {"recipe": self.recipe, "bytes": self.bytes, "num_nodes": len(self.nodes)}
        return named | {"slow": self.slow, "exclude": self.exclude}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BandwidthResult:
        """The inverse of `to_dict`; raises InputError for other data."""
        return from_plain(cls, data)


def write_result(document: Mapping[str, Any], file: Path, *, short: Mapping[str, Any]) -> None:
    """Write result.json, and print its short form with the path of the file."""
    write_json(file, document)
    print_result(short, file)


def print_result(short: Mapping[str, Any], file: Path) -> None:
    """Print a recipe's last line on stdout: its short result and the file with the rest."""
    print(json.dumps({**short, "result": str(file)}), flush=True)


def read_train_result(file: Path) -> TrainResult | None:
    """Read the result of a training run; None if there is none (yet), or it is that of a measuring recipe.

    Raises InputError if the file is damaged.
    """
    if not file.is_file():
        return None
    data = read_json(file, remedy=REMEDY)
    return _typed(TrainResult.from_dict, data, file) if "losses" in data else None


def is_finished(file: Path) -> bool:
    """Return whether the recipe wrote the result of a complete run."""
    return file.is_file() and not read_json(file, remedy=REMEDY).get("stopped")


def written_at(file: Path) -> int | None:
    """Return when a result was written, which distinguishes it from a later one; None if there is none."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def has_finished_since(file: Path, before: int | None) -> bool:
    """Whether the result of a run that went to its end was written, where `written_at` said `before`."""
    try:
        return written_at(file) != before and is_finished(file)
    except InputError:  # damaged: nobody knows
        return False


def read_bandwidth_result(file: Path) -> BandwidthResult:
    """Read the result of the recipe `bandwidth`; raises InputError if the file is damaged."""
    return _typed(BandwidthResult.from_dict, read_json(file, remedy=REMEDY), file)


def _typed(read: Callable[[Mapping[str, Any]], T], data: Mapping[str, Any], file: Path) -> T:
    try:
        return read(data)
    except (KeyError, TypeError, InputError) as error:
        why = "; ".join(error.problems[:MOST_NAMED]) if isinstance(error, InputError) else str(error)
        raise InputError(f"{file} is not a result of this launcher ({why}): {REMEDY}") from error
