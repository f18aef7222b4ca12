"""The page of two runs, plans or measurements: figures, curves and layouts next to each other, and what changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from launcher.cost.estimate import label
from launcher.report import facts
from launcher.report.benchmark import EXPECTED
from launcher.report.comparison import FAR, ChangedSetting, MeasuredChange, Side, changes, differences, factor
from launcher.report.drawings import pipeline, placement
from launcher.report.markup import Tile, details, document, facing, paragraph, section, stacked, table, tiles
from launcher.run.metrics import Measured, StepMetrics
from launcher.units import format_bytes, format_seconds

TAGS = {"A": "-a", "B": "-b"}
TILES = 6
MANY = 16  # settings: more are shown on demand
LONGEST = 160  # characters of a setting's value: curves of measured rates are long


def pair_page(a: Side, b: Side) -> str:
    """Return the page; both sides are measurements, or neither is."""
    sides = {"A": a, "B": b}
    found, both = changes(a, b), bool(a.plan.estimate and b.plan.estimate)
    drawn = {name: facts.pipeline(side.plan) for name, side in sides.items()} if both and not a.rows else {}
    curves = _bandwidths(sides) if a.rows else _steps(sides) if both else []
    body = [
        _header(sides, found),
        "<main>",
        section("What changed in the settings", _settings(differences(a, b))),
        section("Figures", _figures(sides) if both and not a.rows else "", _table(found)),
        section("Bus bandwidth by size" if a.rows else "Over the steps", *map(_place, curves)),
        *([_time(sides), _memory(sides), _pipelines(sides, drawn)] if drawn else []),
        section("Where the ranks are", *(_titled(n, placement(s.plan, TAGS[n])) for n, s in sides.items())),
        "</main>",
    ]
    data = {
        "placements": {TAGS[name]: facts.placement_data(side.plan) for name, side in sides.items()},
        "pipelines": _scaled({TAGS[n]: d.to_data(sides[n].plan.layout.pp) for n, d in drawn.items()}),
        "curves": curves,
    }
    return document(f"{a.name} and {b.name}", body, data)


def _header(sides: Mapping[str, Side], found: Sequence[MeasuredChange]) -> str:
    names = "".join(
        f'<p><b class="side {name.lower()}">{name}</b> <b>{escape(side.name)}</b>: {escape(_about(side))}</p>'
        for name, side in sides.items()
    )
    shown = [change for change in found if EXPECTED in change.name] or found
    head = [
        Tile(change.name, f"{change.a} → {change.b}", change.verdict or "shown, not judged", _tone(change))
        for change in shown[:TILES]
    ]
    return f"<header><h1>B against A</h1>{names}{tiles(head)}</header>"


def _about(side: Side) -> str:
    job, layout = side.plan.job, side.plan.layout
    what = job.model.name if side.plan.estimate else "no model"
    steps = f", {len(side.steps)} steps" if side.steps else ""
    cluster = job.cluster
    return (
        f"{what} on {cluster.num_nodes} × {cluster.node.num_gpus} {cluster.node.gpu.name} as {layout.brief()}, "
        f"batch {job.training.global_batch:,}{steps}"
    )


def _tone(change: MeasuredChange) -> str:
    return {"worse": "bad", "better": "good"}.get(change.verdict.partition(" ")[0], "")


def _settings(found: Sequence[ChangedSetting]) -> str:
    rows = [[setting.key, _short(setting.a), _short(setting.b)] for setting in found]
    if not rows:
        return paragraph("Nothing: job, layout and, of runs, code and packages are the same.")
    shown = f'<div class="wide">{table(["key", "A", "B"], rows)}</div>'
    return shown if len(rows) <= MANY else details(f"{len(rows)} settings differ", shown)


def _short(value: str) -> str:
    return value if len(value) <= LONGEST else f"{value[:LONGEST]}…"


def _table(found: Sequence[MeasuredChange]) -> str:
    rows = [[change.name, change.a, change.b, change.verdict] for change in found]
    return "<h3>Is it more than noise?</h3>" + table(["", "A", "B", "B against A"], rows, numbers=(1, 2))


def _figures(sides: Mapping[str, Side]) -> str:
    """Show what is predicted and what was measured on each side, and by how much B differs."""
    rows = []
    for name, form, read in _QUANTITIES:
        values = [read(side) for side in sides.values()]
        if any(value is not None for value in values):
            rows.append([name, *("–" if value is None else form(value) for value in values), _by(*values)])
    return table(["", "A", "B", "B – A"], rows, numbers=(1, 2, 3))


def _by(a: float | None, b: float | None) -> str:
    if not a or b is None:
        return ""
    if a == b:
        return "same"
    return f"{b / a - 1:+.1%}" if b / a < 1 + FAR else f"{factor(b / a)} ×"


def _estimated(key: str, *, of_all: bool = False) -> Callable[[Side], float | None]:
    def read(side: Side) -> float | None:
        value = side.plan.estimate.get(key)
        return value * side.plan.layout.world_size if of_all and value is not None else value

    return read


def _measured(key: str) -> Callable[[Side], float | None]:
    return lambda side: getattr(side.run.measured if side.run else Measured(), key)


def _count(value: float) -> str:
    return f"{value:,.0f}"


_QUANTITIES: tuple[tuple[str, Callable[[float], str], Callable[[Side], float | None]], ...] = (
    ("step, predicted", format_seconds, _estimated("step_time_s")),
    ("step, measured", format_seconds, _measured("step_s")),
    ("tokens/s, predicted", _count, _estimated("tokens_per_s_per_gpu", of_all=True)),
    ("tokens/s, measured", _count, _measured("tokens_per_s")),
    ("MFU, predicted", "{:.1%}".format, _estimated("mfu")),
    ("MFU, measured", "{:.1%}".format, _measured("mfu")),
    ("memory a GPU, predicted", format_bytes, _estimated("memory_bytes_per_gpu")),
    ("memory a GPU, measured", format_bytes, _measured("memory_bytes")),
    ("cost of a million tokens", "${:.4f}".format, _estimated("cost_per_million_tokens")),
    ("goodput", "{:.0%}".format, lambda side: side.run.goodput if side.run else None),
    ("GPUs", _count, lambda side: side.plan.layout.world_size),
    ("global batch", _count, lambda side: side.plan.job.training.global_batch),
)


def _steps(sides: Mapping[str, Side]) -> list[dict[str, Any]]:
    """Return loss, step time and throughput, each with a line for both sides; a plan has its prediction alone."""
    xs = sorted({step.step for side in sides.values() for step in side.steps})
    by_step = {name: {step.step: step for step in side.steps} for name, side in sides.items()}
    wanted: list[tuple[str, str, str, Callable[[StepMetrics], float | None]]] = [
        ("loss", "Loss", "", lambda step: step.loss),
        ("step-time", "Step time, s", "s", lambda step: step.step_s),
        ("tokens", "Throughput, tokens/s", "tokens/s", lambda step: step.tokens_per_s),
    ]
    found = []
    for key, title, unit, read in wanted:
        lines = [
            _line(name, [_finite(read(steps[x])) if x in steps else None for x in xs])
            for name, steps in by_step.items()
        ]
        lines = [line for line in lines if any(y is not None for y in line["ys"])]
        if lines and key == "step-time":
            lines += [_predicted(name, side, len(xs)) for name, side in sides.items()]
        if lines:
            found.append({"id": f"curve-{key}", "title": title, "x": "step", "xs": xs, "unit": unit, "lines": lines})
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _line(side: str, ys: Sequence[float | None], *, name: str = "", dash: bool = False) -> dict[str, Any]:
    return {"name": f"{side}{name}", "ys": list(ys), "dash": dash, "hue": list(TAGS).index(side)}


def _predicted(name: str, side: Side, count: int) -> dict[str, Any]:
    return _line(name, [side.plan.estimate["step_time_s"]] * count, name=", predicted", dash=True)


def _bandwidths(sides: Mapping[str, Side]) -> list[dict[str, Any]]:
    """Return one plot per axis of what both measured over it: the operation that the page of one run has expected."""
    rows = {name: [row for row in side.rows if row.get("operation") == EXPECTED] for name, side in sides.items()}
    found = []
    for axis in dict.fromkeys(row["axis"] for of_side in rows.values() for row in of_side):
        rates = {
            n: {r["bytes"]: r["busbw_gbytes_per_s"] for r in mine if r["axis"] == axis} for n, mine in rows.items()
        }
        xs = sorted({size for sizes in rates.values() for size in sizes})
        lines = [_line(name, [sizes.get(size) for size in xs]) for name, sizes in rates.items()]
        plot = {"id": f"curve-{axis}", "title": f"{EXPECTED} over {axis}, GB/s", "x": "bytes", "unit": "GB/s"}
        found.append({**plot, "log": True, "logx": True, "xs": xs, "lines": lines})
    return found


def _place(curve: Mapping[str, Any]) -> str:
    return f'<h3>{escape(curve["title"])}</h3><div id="{escape(curve["id"])}"></div>'


def _time(sides: Mapping[str, Side]) -> str:
    """Show the predicted parts of a step of both, part by part."""
    parts = {name: _exposed(side) for name, side in sides.items()}
    names = sorted(
        set().union(*parts.values()), key=lambda part: -max(found.get(part, 0.0) for found in parts.values())
    )
    rows = {
        label(part): [
            (name, found.get(part, 0.0), format_seconds(found.get(part, 0.0))) for name, found in parts.items()
        ]
        for part in names
    }
    return section("Where the time goes, as predicted", facing(rows))


def _exposed(side: Side) -> dict[str, float]:
    return {name: s for name, s in side.plan.estimate["time"].items() if s > 0 and not name.endswith("_hidden")}


def _memory(sides: Mapping[str, Side]) -> str:
    """Show what fills the fullest stage of both."""
    rows = dict(_fullest(sides))
    words = {name: format_bytes(sum(parts.values())) for name, parts in rows.items()}
    limit = max(sum(parts.values()) for parts in rows.values())
    return section("Memory of the fullest stage, as predicted", stacked(rows, limit=limit, words=words))


def _fullest(sides: Mapping[str, Side]) -> Iterator[tuple[str, Mapping[str, float]]]:
    for name, side in sides.items():
        worst = side.plan.estimate["worst_stage"]
        yield f"{name}, stage {worst}", facts.stage_memory(side.plan)[worst]


def _pipelines(sides: Mapping[str, Side], drawn: Mapping[str, facts.Pipeline]) -> str:
    words = paragraph("Both to the same scale of time.", dim=True)
    return section("One step", words, *(_titled(n, pipeline(s.plan, drawn[n], TAGS[n])) for n, s in sides.items()))


def _scaled(drawn: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Let the longest step be the whole width of all."""
    longest_s = max((data["end"] * data["unit_s"] for data in drawn.values()), default=0.0)
    return {tag: {**data, "whole": longest_s / data["unit_s"]} for tag, data in drawn.items()}


def _titled(name: str, body: str) -> str:
    return f"<h3>{escape(name)}</h3>{body}"
