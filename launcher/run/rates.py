"""result.json of the measuring recipes: the keys of their rows, and of what is calibrated from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

from launcher.errors import InputError
from launcher.files import read_json
from launcher.run.result import MOST_NAMED, REMEDY, write_result
from launcher.schema import from_plain

ROWS = "results"
LARGEST = 1e18  # of a number; beyond it is no measurement


@dataclass(frozen=True)
class SlowestGroup:
    """The slowest group of ranks, and its hosts."""

    ranks: tuple[int, ...]
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class SlowestRank:
    rank: int
    host: str


@dataclass(frozen=True)
class SlowGroup:
    """A group of ranks that is slower than the others of its axis."""

    axis: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class CollectiveRow:
    """One collective over one axis with one size; `alone_cpu_s`: with no other group of the axis at work."""

    operation: str
    axis: str
    link: str
    group_size: int
    per_node: int
    num_groups: int
    bytes: int
    time_s: float
    cpu_s: float
    alone_cpu_s: float | None
    expected_s: float | None
    algbw_gbytes_per_s: float
    busbw_gbytes_per_s: float
    slowest: SlowestGroup
    wrong: int


@dataclass(frozen=True)
class ProductRow:
    """One product, m × n × k."""

    name: str
    dtype: str
    m: int
    n: int
    k: int
    time_s: float
    tflops: float
    fraction_of_peak: float | None
    slowest: SlowestRank


@dataclass(frozen=True)
class TransferRow:
    """Bytes moved in a device's memory, or by so many writers to a file system."""

    name: str
    bytes: int
    time_s: float
    gbytes_per_s: float
    slowest: SlowestRank
    writers: int | None = None


@dataclass(frozen=True)
class TrialRow:
    """The steps of one plan that `launcher tune` tried; `plan` is its file."""

    plan: str
    layout: str | None = None
    predicted_step_time_s: float | None = None
    step_time_s: float | None = None
    stopped_early: bool = False
    steps_s: tuple[float, ...] = ()
    cpu_s: tuple[float, ...] = ()


KINDS: Mapping[str, type] = MappingProxyType(
    {
        "collectives": CollectiveRow,
        "gemm": ProductRow,
        "memory": TransferRow,
        "storage": TransferRow,
        "tune": TrialRow,
    }
)
# What is in a document besides its rows, where it is there.
ALSO: Mapping[tuple[str, ...], Any] = MappingProxyType(
    {
        ("date",): str,
        ("hosts",): tuple[str, ...],
        ("versions",): Mapping[str, str],
        ("verdict", "text"): str,
        ("verdict", "slow_groups"): tuple[SlowGroup, ...],
        ("cluster", "node", "gpu", "gemm_tflops"): Mapping[str, float],
        ("cluster", "node", "gpu", "attention_tflops"): Mapping[str, float],
        ("cluster", "node", "gpu", "copy_gbytes_per_s"): float,
        ("cluster", "measured", "checkpoint_write_gbytes_per_s"): Mapping[str, float],
        ("cluster", "measured", "checkpoint_read_gbytes_per_s"): Mapping[str, float],
    }
)


def write_rates(document: Mapping[str, Any], file: Path) -> None:
    """Write the document of a measuring recipe; its last line on stdout is all but the rows."""
    write_result(document, file, short={name: value for name, value in document.items() if name != ROWS})


def read_rates(file: Path) -> dict[str, Any] | None:
    """Read the document of a measuring recipe (`results`, one row per measurement); None if it is of another one.

    Raises InputError if the file is damaged.
    """
    data = read_json(file, remedy=REMEDY) if file.is_file() else {}
    recipe = data.get("recipe")
    if not isinstance(recipe, str) or recipe not in KINDS or not data.get(ROWS):
        return None
    if problems := [*_wrong_rows(data[ROWS], KINDS[recipe]), *_wrong_besides(data)]:
        named = "; ".join(problems[:MOST_NAMED])
        raise InputError(f"{file} is not a result of the recipe {recipe} ({named}): {REMEDY}")
    return data


def _wrong_rows(rows: Any, kind: type) -> Iterator[str]:
    if not isinstance(rows, list):
        yield f"{ROWS} is not a list of rows"
        return
    for number, row in enumerate(rows):
        yield from _wrong(kind, row, f"{ROWS}[{number}]")


def _wrong_besides(data: Mapping[str, Any]) -> Iterator[str]:
    for path, kind in ALSO.items():
        inner: Any = data
        for depth, key in enumerate(path):
            if not isinstance(inner, Mapping):
                yield f"{'.'.join(path[:depth])} is not a group of keys"
                break
            if key not in inner:
                break
            inner = inner[key]
        else:
            yield from _wrong(kind, inner, ".".join(path))


def _wrong(kind: Any, data: Any, name: str) -> Iterator[str]:
    """Yield what is wrong with a value: its type, or a number that no clock and no counter gives."""
    try:
        from_plain(kind, _read(kind, data), name)
    except InputError as error:
        yield from error.problems
        return
    for inner, value in _numbers(data, name):
        if not isfinite(value) or not 0 <= value <= LARGEST or (value == 0 and inner.endswith(".time_s")):
            yield f"{inner} = {value} was never measured"


def _read(kind: Any, data: Any) -> Any:
    """Leave the keys that are read, with the defaults of those that may lack."""
    if not is_dataclass(kind) or not isinstance(data, Mapping):
        return data
    hints = get_type_hints(kind)
    defaults = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    return {key: _read(hints[key], value) for key, value in {**defaults, **data}.items() if key in hints}


def _numbers(data: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _numbers(value, f"{name}.{key}")
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _numbers(value, f"{name}[{number}]")
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield name, data
