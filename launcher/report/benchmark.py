"""The page of a measuring recipe: bandwidths by size and axis, rates of products, slow members."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import Any

from launcher.planner import Plan
from launcher.report.markup import Tile, details, document, paragraph, section, table, tiles
from launcher.units import format_bytes, format_seconds

EXPECTED = "all_reduce"  # the one operation with a curve of what the planner expects, so that curves can be told apart
Row = Mapping[str, Any]


def benchmark_page(plan: Plan, result: Mapping[str, Any], *, name: str) -> str:
    """Return the page of a recipe's document with `results`, one row per measurement."""
    rows: Sequence[Row] = result["results"]
    recipe: str = result["recipe"]
    cluster = plan.job.cluster
    title = f"{recipe} on {cluster.name}: {cluster.num_nodes} × {cluster.node.num_gpus} {cluster.node.gpu.name}"
    collective = recipe == "collectives"
    shown = SECTIONS[recipe](rows)
    head = f"<header><h1>{escape(title)}</h1>{paragraph(_about(name, result), dim=True)}{tiles(_best(rows))}</header>"
    keys = table(["key", "value"], list(_keys("cluster", result.get("cluster") or {})))
    body = [
        head,
        "<main>",
        section("Who is slow", paragraph(_verdict(result)), _slow(result)) if collective else "",
        *shown,
        section("Keys for the cluster file", keys) if result.get("cluster") else "",
        "</main>",
    ]
    return document(title, body, {"curves": _curves(rows) if collective else []})


def _verdict(result: Mapping[str, Any]) -> str:
    text = str((result.get("verdict") or {}).get("text", "not judged"))
    return f"{text[:1].upper()}{text[1:]}."


def _slow(result: Mapping[str, Any]) -> str:
    """Name each slow group; nothing where none is."""
    groups = (result.get("verdict") or {}).get("slow_groups") or []
    return table(["axis", "slow group of ranks"], [[g["axis"], ", ".join(map(str, g["ranks"]))] for g in groups])


def _about(name: str, result: Mapping[str, Any]) -> str:
    known = ("backend", "dtype", "world_size", "device")
    return " · ".join(
        [name, *(f"{key.replace('_', ' ')} {result[key]}" for key in known if result.get(key) is not None)]
    )


def _best(rows: Sequence[Row]) -> list[Tile]:
    found = []
    for axis in dict.fromkeys(row["axis"] for row in rows if "axis" in row):
        best = max((row for row in rows if row["axis"] == axis), key=lambda row: row["busbw_gbytes_per_s"])
        note = f"busbw of {best['operation']}, {format_bytes(best['bytes'])}, {best['link']}"
        found.append(Tile(f"best over {axis}", f"{best['busbw_gbytes_per_s']:.3g} GB/s", note))
    for dtype in dict.fromkeys(row["dtype"] for row in rows if "tflops" in row):
        best = max((row for row in rows if row.get("dtype") == dtype), key=lambda row: row["tflops"])
        found.append(Tile(f"largest product rate, {dtype}", f"{best['tflops']:.3g} TFLOP/s", best["name"]))
    wrong = sum(row.get("wrong", 0) for row in rows)
    return (
        [*found, Tile("wrong elements", f"{wrong:,}", "", "bad" if wrong else "good")] if "wrong" in rows[0] else found
    )


def _against_expectation(rows: Sequence[Row]) -> str:
    """Compare the largest message of each operation over each axis with the time that the planner expects."""
    largest: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["axis"], row["operation"])
        if row.get("expected_s") and row["bytes"] > largest.get(key, {"bytes": 0})["bytes"]:
            largest[key] = row
    if not largest:
        return ""
    sizes = dict.fromkeys(format_bytes(row["bytes"]) for row in largest.values())
    columns = ["axis", "operation", "busbw GB/s", "expected", "of expected"]
    cells = [
        [axis, operation, f"{row['busbw_gbytes_per_s']:.3g}", f"{_expected(row):.3g}",
         f"{row['expected_s'] / row['time_s']:.0%}"]
        for (axis, operation), row in largest.items()
    ]  # fmt: skip
    said = f"The largest message of each ({' or '.join(sizes)}), against what plans for this cluster expect of it."
    return f"<h3>Against expectation</h3>{paragraph(said, dim=True)}{table(columns, cells, numbers=(2, 3, 4))}"


def _collectives(rows: Sequence[Row]) -> list[str]:
    columns = [
        "axis",
        "operation",
        "size",
        "groups",
        "link",
        "time",
        "expected",
        "algbw",
        "busbw GB/s",
        "slowest on",
        "wrong",
    ]
    every = table(columns, [_collective(row) for row in rows], numbers=(2, 5, 6, 7, 8, 10))
    axes = dict.fromkeys(row["axis"] for row in rows)
    places = "".join(
        f'<h3>Bus bandwidth over {escape(axis)}, GB/s</h3><div id="curve-{escape(axis)}"></div>' for axis in axes
    )
    return [
        section("Bandwidth by size", places, _against_expectation(rows)),
        section("Measurements", details(f"All {len(rows)} measurements as a table", every)),
    ]


def _collective(row: Row) -> list[str]:
    return [
        row["axis"],
        row["operation"],
        format_bytes(row["bytes"]),
        f"{row['num_groups']} × {row['group_size']}",
        row["link"],
        format_seconds(row["time_s"]),
        format_seconds(row["expected_s"]) if row.get("expected_s") else "unknown",
        f"{row['algbw_gbytes_per_s']:.3g}",
        f"{row['busbw_gbytes_per_s']:.3g}",
        ", ".join(row["slowest"]["hosts"]),
        str(row["wrong"]),
    ]


def _products(rows: Sequence[Row]) -> list[str]:
    columns = ["product", "dtype", "m × n × k", "time", "TFLOP/s", "of peak", "slowest"]
    return [section("Matrix products", table(columns, [_product(row) for row in rows], numbers=(3, 4, 5)))]


def _rates(rows: Sequence[Row]) -> list[str]:
    """Of memory and storage."""
    columns = ["what", "writers", "bytes", "time", "GB/s", "slowest"]
    cells = [
        [
            row["name"],
            str(row.get("writers", "")),
            format_bytes(row["bytes"]),
            format_seconds(row["time_s"]),
            f"{row['gbytes_per_s']:.3g}",
            f"rank {row['slowest']['rank']}, {row['slowest']['host']}",
        ]
        for row in rows
    ]
    return [section("Rates", table(columns, cells, numbers=(1, 2, 3, 4)))]


def _trials(rows: Sequence[Row]) -> list[str]:
    columns = ["layout", "predicted", "measured", "note"]
    return [section("Plans", table(columns, [_trial(row) for row in rows], numbers=(1, 2)))]


def _trial(row: Row) -> list[str]:
    known = [row.get("predicted_step_time_s"), row.get("step_time_s")]
    note = "stopped: too slow" if row.get("stopped_early") else ""
    return [
        row.get("layout") or row["plan"],
        *("unknown" if seconds is None else format_seconds(seconds) for seconds in known),
        note,
    ]


def _product(row: Row) -> list[str]:
    return [
        row["name"],
        row["dtype"],
        f"{row['m']} × {row['n']} × {row['k']}",
        format_seconds(row["time_s"]),
        f"{row['tflops']:.3g}",
        "unknown" if row["fraction_of_peak"] is None else f"{row['fraction_of_peak']:.1%}",
        f"rank {row['slowest']['rank']}, {row['slowest']['host']}",
    ]


SECTIONS: Mapping[str, Callable[[Sequence[Row]], list[str]]] = MappingProxyType(
    {"collectives": _collectives, "gemm": _products, "memory": _rates, "storage": _rates, "tune": _trials}
)


def _curves(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one plot per axis: bus bandwidth by size, one line per operation."""
    found = []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        sizes = sorted({row["bytes"] for row in rows if row["axis"] == axis})
        lines: dict[str, dict[int, float]] = defaultdict(dict)
        for row in rows:
            if row["axis"] == axis:
                lines[row["operation"]][row["bytes"]] = row["busbw_gbytes_per_s"]
        drawn: list[dict[str, Any]] = [
            {"name": name, "ys": [values.get(size) for size in sizes]} for name, values in lines.items()
        ]
        expected = {row["bytes"]: _expected(row) for row in rows if row["axis"] == axis and _is_shown(row)}
        if any(expected.values()):
            drawn.append({"name": f"{EXPECTED}, expected", "ys": [expected.get(size) for size in sizes], "dash": True})
        place = {"id": f"curve-{axis}", "x": "bytes", "unit": "GB/s", "log": True, "logx": True}
        found.append({**place, "xs": sizes, "lines": drawn})
    return found


def _is_shown(row: Row) -> bool:
    return bool(row["operation"] == EXPECTED)


def _expected(row: Row) -> float | None:
    """Bus bandwidth, if the operation took the time that the planner expects."""
    seconds = row.get("expected_s")
    return row["busbw_gbytes_per_s"] * row["time_s"] / seconds if seconds else None


def _keys(prefix: str, node: Mapping[str, Any]) -> list[list[str]]:
    found: list[list[str]] = []
    for key, value in node.items():
        name = f"{prefix}.{key}"
        found += _keys(name, value) if isinstance(value, Mapping) else [[name, str(value)]]
    return found
