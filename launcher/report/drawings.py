"""What is drawn of a plan on a page: its ranks, one step, its time and its memory."""

from __future__ import annotations

from html import escape

from launcher.cost.estimate import label
from launcher.planner import Plan
from launcher.report import facts
from launcher.report.facts import Pipeline
from launcher.report.markup import bars, bullets, paragraph, stacked
from launcher.units import format_bytes, format_seconds

LITTLE = 0.1  # of the budget: below it, the bars show the parts and not the budget, which would leave them no room


def placement(plan: Plan, tag: str = "") -> str:
    """Show the ranks on their GPUs. `tag`: tells several of a page apart."""
    words = f"{_some(plan.grid.size, 'rank')} on {_some(plan.placement.num_nodes, 'node')}. "
    words += f"Axis order {plan.layout.axis_order}: the first varies fastest."
    role = f'role="application" aria-label="{plan.grid.size} ranks on their GPUs"'
    return (
        f"{paragraph(words)}"
        f'<div class="controls"><label>Colour by <select id="axis{tag}"></select></label>'
        f'<div class="legend" id="legend{tag}"></div></div>'
        f'<p id="rank{tag}" class="out" aria-live="polite">Point at a GPU, or focus the cluster and use arrow keys.</p>'
        f'<div class="cluster" id="cluster{tag}" tabindex="0" {role}></div>'
    )


def pipeline(plan: Plan, drawn: Pipeline, tag: str = "") -> str:
    """Show the boxes of one step. `tag`: tells several of a page apart."""
    layout = plan.layout
    words = f"{layout.schedule}: {_some(drawn.micro_batches, 'micro-batch')} a step over {_some(layout.pp, 'stage')}"
    words += f" of {layout.virtual_stages} virtual stages each" if layout.virtual_stages > 1 else ""
    words += f"; {drawn.left_out:,} micro-batches in the middle are not drawn" if drawn.left_out else ""
    legend = [("forward", 0), ("backward", 2), ("gradients and optimizer", 7)]
    legend += [("weight gradients", 5)] if layout.schedule == "zb_h1" else []
    marks = "".join(f'<span><i style="background:var(--c{i})"></i>{name}</span>' for name, i in legend)
    return (
        f"{paragraph(words + ', to scale as predicted.')}"
        f'<div class="controls"><button id="zoom{tag}" type="button">Zoom</button>'
        f'<div class="legend">{marks}</div></div>'
        f'<div class="scroll" tabindex="0" id="pipeline{tag}" data-label="{escape(words)}"></div>'
        f'<p id="box{tag}" class="out" aria-live="polite">Point at a box, or focus the step and use arrow keys.</p>'
    )


def _some(number: int, what: str) -> str:
    """Format a number of things: 1 node, 8 nodes, 4 micro-batches."""
    plural = "es" if what.endswith("ch") else "s"
    return f"{number:,} {what}{'' if number == 1 else plural}"


def time_bars(plan: Plan) -> str:
    """Show the parts of a step, largest first."""
    time, step_s = plan.estimate["time"], plan.estimate["step_time_s"]
    seen = {name: s for name, s in time.items() if s > 0 and not name.endswith("_hidden")}
    hidden = {name: s for name, s in time.items() if s > 0 and name.endswith("_hidden")}
    ordered = dict(sorted(seen.items(), key=lambda item: -item[1]))
    shown = {label(name): (s, f"{format_seconds(s)}, {s / step_s:.1%}") for name, s in ordered.items()}
    behind = [
        f"{label(name.removesuffix('_hidden'))} of {format_seconds(s)} overlaps with compute"
        for name, s in hidden.items()
    ]
    return f"<h3>Where the time goes</h3>{bars(shown)}{bullets(behind)}"


def memory(plan: Plan) -> str:
    """Show what fills the memory of each stage's ranks, against the budget."""
    stages = facts.stage_memory(plan)
    usable, most = plan.estimate["usable_memory_bytes"], max(sum(parts.values()) for parts in stages)
    rows = {f"stage {i}" if len(stages) > 1 else "every rank": parts for i, parts in enumerate(stages)}
    words = {name: f"{format_bytes(sum(parts.values()))}" for name, parts in rows.items()}
    little = most < LITTLE * usable
    whole = f"what stage {plan.estimate['worst_stage']} needs, {most / usable:.1%} of the" if little else "the"
    caption = f"The whole bar is {whole} budget of {format_bytes(usable)}"
    caption += "." if little else f"; stage {plan.estimate['worst_stage']} needs the most."
    return paragraph(caption) + stacked(rows, limit=most if little else usable, words=words)
