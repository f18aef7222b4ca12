"""What nccl-tests prints, or writes as JSON (-J), as measured points. Formats: NVIDIA/nccl-tests, src/util.cu."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from launcher.errors import InputError

# Names of programs and of `Collective test starting` lines.
PROGRAMS = {
    "all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all", "all_to_all": "all_to_all", "sendrecv": "send_recv", "send_recv": "send_recv",
}  # fmt: skip
NAMED = re.compile(r"\b(all_reduce|all_gather|reduce_scatter|alltoall|all_to_all|sendrecv|send_recv)(?:_perf|\b)")
DEVICE = re.compile(
    r"^(?:\S{1,60}:[ \t]*)?#\s+Rank\s+([0-9]{1,9})\s+(?:Group\s+\d+\s+)?Pid\s+\d+\s+on\s+(\S+)\s+device", re.MULTILINE
)
MOST_POINTS = 10_000
FORM = 4  # columns of one form: time, algbw, busbw, #wrong
# Versions before 2.13 print the largest numerical error of a size in place of the number of wrong elements.
ERRORS = re.compile(r"#.{1,200}\bbusbw\s+error\b")
OUT_OF_BOUNDS = re.compile(r"#\s*Out of bounds values\s*:\s*([0-9]{1,9})")


@dataclass(frozen=True)
class NcclTest:
    """One run of one program. `points`: bytes and seconds, the slower of both forms where there are two; `hosts` in
    rank order, empty where the text does not list its devices.
    """

    operation: str | None
    points: tuple[tuple[int, float], ...]
    wrong: float
    hosts: tuple[str, ...] = ()
    library: str | None = None
    date: str | None = None
    busbw: tuple[float | None, ...] = ()  # of the points, as printed, GB/s

    @property
    def per_node(self) -> int | None:
        """Ranks on the node that has most."""
        return max(Counter(self.hosts).values()) if self.hosts else None


def read_nccl_tests(text: str, what: str) -> list[NcclTest]:
    """Every run in a text; raises InputError where there is none."""
    if text.lstrip().startswith("{"):
        return [_from_json(text, what)]
    found = [run for part in _parts(text) if (run := _from_text(part)) is not None]
    if not found:
        raise InputError(
            f"{what} has no line of results as nccl-tests prints them (bytes, count, type, redop, root, time, algbw, "
            "busbw): give its whole output, its JSON file (-J), or a run folder of the recipe collectives"
        )
    return found


def _parts(text: str) -> list[str]:
    """A text may hold several runs: each begins with its line of threads or its name."""
    starts = [m.start() for m in re.finditer(r"^#\s*(?:Collective test starting|nThread)\b", text, re.MULTILINE)]
    kept = [start for i, start in enumerate(starts) if i == 0 or _RESULT.search(text[starts[i - 1] : start])]
    cuts = [0, *kept[1:], len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]


_RESULT = re.compile(r"^[ \t]*(?:\S+:\s+)?([0-9]+)[ \t]+([0-9]+)[ \t]+([a-z]\w*)[ \t]+(.*)$", re.MULTILINE)


def _from_text(text: str) -> NcclTest | None:
    points = [point for match in _RESULT.finditer(text) if (point := _point(match)) is not None]
    if not points:
        return None
    named = NAMED.search(text[: _RESULT.search(text).start()])  # type: ignore[union-attr]
    library = re.search(r"nccl-library=(\d+)|NCCL version ([\d.]+)", text)
    return NcclTest(
        PROGRAMS[named[1]] if named else None,
        tuple((size, seconds) for size, seconds, _, _ in points),
        _wrong(text, sum(wrong for _, _, wrong, _ in points)),
        tuple(host for _, host in sorted((int(rank), host) for rank, host in DEVICE.findall(text))),
        next((group for group in library.groups() if group), None) if library else None,
        busbw=tuple(rate for *_, rate in points),
    )


def _wrong(text: str, counted: float) -> float:
    """Wrong elements, or sizes with some, where the last column has errors."""
    bounds = OUT_OF_BOUNDS.search(text)
    return (float(bounds[1]) if bounds else 0.0) if ERRORS.search(text) else counted


def _point(match: re.Match[str]) -> tuple[int, float, float, float | None] | None:
    """Bytes, seconds, wrong elements and busbw of a line; None where it has no time.

    Behind the type are redop and root, which old versions leave out; then time (without decimals from 10 ms on), algbw,
    busbw and the number of wrong elements, once or twice.
    """
    cells = match[4].split()
    while cells and not _is_number(cells[0]) and cells[0] != "N/A":
        cells = cells[1:]
    if len(cells) % FORM == 1:
        cells = cells[1:]  # root
    forms = [cells[i : i + FORM] for i in (0, FORM) if len(cells) >= i + 3]
    timed = [form for form in forms if _is_number(form[0]) and float(form[0]) > 0]
    if not timed or len(match[1]) > 18 or not int(match[1]):
        return None
    slower = max(timed, key=lambda form: float(form[0]))
    wrong = sum(float(form[3]) for form in timed if len(form) > 3 and _is_number(form[3]))
    return int(match[1]), float(slower[0]) / 1e6, wrong, float(slower[2]) if _is_number(slower[2]) else None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d{1,18}(\.\d{0,9})?([eE][+-]?\d{1,2})?", text) is not None


def _from_json(text: str, what: str) -> NcclTest:
    try:
        data = json.loads(text)
        rows: Sequence[Mapping[str, Any]] = data["results"]
        points, wrong = [], 0.0
        for row in rows:
            forms = [row[name] for name in ("out_of_place", "in_place") if row.get(name)]
            slower = max(forms, key=lambda form: float(form["time"]))
            points.append((int(row["size"]), float(slower["time"]) / 1e6, float(slower["bus_bw"])))
            wrong += sum(float(form["nwrong"]) for form in forms if form.get("nwrong") is not None)
        devices = data.get("config", {}).get("devices") or data.get("devices") or []
        hosts = tuple(device["hostname"] for device in sorted(devices, key=lambda device: device["rank"]))
        words = " ".join(map(str, data.get("args", [])))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{what} is not JSON as nccl-tests writes it (-J): give the whole file") from error
    if not 0 < len(points) <= MOST_POINTS:
        raise InputError(f"{what} holds {len(points)} results: give one run of nccl-tests, with some")
    named = NAMED.search(words)
    library = str(data["nccl_version"]) if data.get("nccl_version") else None
    date = str(data["start_time"])[:10] if data.get("start_time") else None
    timed = tuple((size, seconds) for size, seconds, _ in points if seconds > 0)
    rates = tuple(rate for _, seconds, rate in points if seconds > 0)
    return NcclTest(PROGRAMS[named[1]] if named else None, timed, wrong, hosts, library, date, rates)
