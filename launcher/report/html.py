"""One self-contained HTML page about a plan or a run: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from launcher.planner import Plan, read_plan
from launcher.report import svg
from launcher.report.timeline import timeline
from launcher.run.folder import RunFolder
from launcher.run.metrics import StepMetrics, read_steps, summarise_steps
from launcher.units import format_bytes, format_count, format_seconds

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1c2330;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}td,th{padding:.15rem .8rem .15rem 0;text-align:left}
svg{max-width:100%;height:auto}svg text{fill:#1c2330}.scroll{overflow-x:auto}
@media(prefers-color-scheme:dark){body{background:#14181f;color:#dde3ee}.scroll{background:#f4f6fa;padding:.5rem}}
"""


def run_page(folder: RunFolder) -> str:
    """The page of a run folder: its plan, and what was measured so far; raises InputError without a plan."""
    return page(read_plan(folder.plan), steps=read_steps(folder.metrics), name=folder.path.name)


def page(plan: Plan, *, steps: Sequence[StepMetrics] = (), name: str = "plan") -> str:
    """The page of a plan, with the measured steps where there are any."""
    model, cluster = plan.job.model, plan.job.cluster
    title = f"{model.name} on {cluster.name}: {plan.layout.brief()}"
    sections = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(name)} · {format_count(model.params)} parameters · "
        f"{cluster.num_nodes} × {cluster.node.num_gpus} {escape(cluster.node.gpu.name)}</p>",
        _section("Why this layout", "<ul>" + "".join(f"<li>{escape(reason)}</li>" for reason in plan.why) + "</ul>"),
        _section("Predicted and measured", _comparison(plan, steps)),
        _section("Where the time goes", _bars(plan.estimate.get("time", {}), format_seconds)),
        _section("Where the memory goes", _bars(plan.estimate.get("memory", {}), format_bytes)),
        _section("Placement", svg.placement_svg(plan.placement, plan.hosts)),
        _section("Pipeline", _pipeline(plan)),
        _section("Loss", _curve("loss", [(step.step, step.loss) for step in steps])),
        _section("Step time", _curve("step_s", [(step.step, step.step_s) for step in steps])),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "".join(sections)
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n"


def _section(title: str, body: str) -> str:
    return f'<h2>{escape(title)}</h2><div class="scroll">{body}</div>' if body else ""


def _bars(values: Mapping[str, float], words: Any) -> str:
    """Bars of the parts that are not zero, largest first."""
    parts = dict(sorted(((k, v) for k, v in values.items() if v > 0), key=lambda item: -item[1]))
    return svg.bars_svg(parts, {name: words(value) for name, value in parts.items()}) if parts else ""


def _comparison(plan: Plan, steps: Sequence[StepMetrics]) -> str:
    predicted = plan.estimate["step_time_s"]
    measured = summarise_steps(steps).step_s
    rows = [("step time", format_seconds(predicted), format_seconds(measured) if measured else "not measured")]
    if measured:
        rows.append(("predicted / measured", f"{predicted / measured:.2f}", ""))
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr><th></th><th>predicted</th><th>measured (median)</th></tr>{cells}</table>"


def _pipeline(plan: Plan) -> str:
    layout = plan.layout
    if layout.pp == 1:
        return ""
    total = layout.num_micro_batches(plan.job.training.global_batch)
    shown = min(total, max(layout.pp * 2, svg.MAX_MICRO_BATCHES) // layout.pp * layout.pp)
    backward = 3.0 if layout.recompute == "full" else 2.0
    boxes = timeline(
        layout.schedule, pp=layout.pp, virtual_stages=layout.virtual_stages, num_micro_batches=shown, backward=backward
    )
    words = f"{layout.schedule}, {shown} of {total} micro-batches, backward drawn as {backward:g} × forward"
    return f"<p>{escape(words)}</p>{svg.timeline_svg(boxes, pp=layout.pp)}"


def _curve(name: str, values: Sequence[tuple[int, float | None]]) -> str:
    points = [(float(step), value) for step, value in values if value is not None]
    return svg.curve_svg(points, name=name) if points else ""
