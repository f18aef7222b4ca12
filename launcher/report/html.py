"""One self-contained HTML page about a plan or a run, with the most important facts first."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import fields
from html import escape

from launcher.layout import Layout
from launcher.planner import Plan, read_plan
from launcher.planner.explain import label
from launcher.planner.result import SearchResult
from launcher.planner.search import OTHER_ORDER, SLOWER, UNFIT
from launcher.report import facts
from launcher.report.benchmark import benchmark_page
from launcher.report.facts import Pipeline, RunFacts
from launcher.report.markup import (
    Dot,
    Tile,
    bars,
    bullets,
    document,
    paragraph,
    scatter,
    section,
    stacked,
    table,
    tiles,
)
from launcher.run.folder import RunFolder
from launcher.run.metrics import PARTS
from launcher.run.result import read_rates
from launcher.units import GIB, format_bytes, format_count, format_seconds

SHOWN = 8  # alternatives in the table; the scatter has more
TIGHT = 0.95  # of the memory budget: above this, a plan has little room


def run_page(folder: RunFolder) -> str:
    """Return the page of a run folder: its plan and measurements so far, or a benchmark's rates.

    Raises InputError without a plan.
    """
    plan = read_plan(folder.present_plan)
    rates = read_rates(folder.result)
    return benchmark_page(plan, rates, name=folder.path.name) if rates else page(plan, RunFacts.read(folder))


def page(plan: Plan, run: RunFacts | None = None) -> str:
    """Return the page of a plan, with its run, if any."""
    if not plan.estimate:
        return _program_page(plan, run)
    model, cluster, layout = plan.job.model, plan.job.cluster, plan.layout
    title = f"{model.name} on {cluster.name}: {layout.brief()}"
    found, drawn = facts.alternatives(plan), facts.pipeline(plan)
    body = [
        _header(plan, title, run),
        "<main>",
        section("Why this layout", bullets(plan.why), _alternatives(plan, found)),
        section("Where the ranks are", _placement(plan)),
        section("One step", _pipeline(plan, drawn), _time_bars(plan)),
        section("Memory by stage", _memory(plan)),
        *([_measured(plan, run), _curves(run, plan), _starts(run)] if run else []),
        section("Run it", _commands(plan)),
        "</main>",
    ]
    data = {
        "placement": facts.placement_data(plan),
        "pipeline": drawn.to_data(layout.pp),
        "curves": facts.curves(run, plan) if run else [],
    }
    return document(title, body, data)


def _program_page(plan: Plan, run: RunFacts | None) -> str:
    """Return the page of a program without an estimate: placement of its ranks, and its start."""
    cluster, ranks = plan.job.cluster, plan.layout.world_size
    program = plan.options.program
    name = program.target if program else plan.job.model.name
    title = f"{name} on {cluster.name}: {ranks} rank{'s' if ranks > 1 else ''}"
    words = f"{run.name if run else 'plan'} · {cluster.num_nodes} × {cluster.node.num_gpus} {cluster.node.gpu.name}"
    body = [
        f"<header><h1>{escape(title)}</h1>{paragraph(words, dim=True)}</header>",
        "<main>",
        section("What is known", bullets(plan.why)),
        section("Where the ranks are", _placement(plan)),
        *([_starts(run)] if run else []),
        "</main>",
    ]
    return document(title, body, {"placement": facts.placement_data(plan), "curves": []})


def _header(plan: Plan, title: str, run: RunFacts | None) -> str:
    model, cluster, training = plan.job.model, plan.job.cluster, plan.job.training
    words = (
        f"{run.name if run else 'plan'} · {format_count(model.params)} parameters · {cluster.num_nodes} × "
        f"{cluster.node.num_gpus} {cluster.node.gpu.name} · batch {training.global_batch:,} × {model.seq_len:,} tokens "
        f"· {training.dtype}"
    )
    return f"<header><h1>{escape(title)}</h1>{paragraph(words, dim=True)}{tiles(_headline(plan, run))}</header>"


def _headline(plan: Plan, run: RunFacts | None) -> Iterator[Tile]:
    estimate, world = plan.estimate, plan.layout.world_size
    measured = run.measured if run else None
    predicted = estimate["step_time_s"]
    interval = estimate.get("step_time_interval_s")
    between = f" ({format_seconds(interval[0])} to {format_seconds(interval[1])})" if interval else ""
    if measured and measured.step_s:
        ratio = predicted / measured.step_s
        yield Tile(
            "step, measured",
            format_seconds(measured.step_s),
            f"predicted {format_seconds(predicted)}{between}, {ratio:.2f} ×",
        )
        yield Tile(
            "tokens/s, measured",
            _count(measured.tokens_per_s),
            f"predicted {_count(estimate['tokens_per_s_per_gpu'] * world)}",
        )
    else:
        yield Tile(
            "step, predicted", format_seconds(predicted), f"90 % interval{between}" if between else "not measured yet"
        )
        yield Tile(
            "tokens/s, predicted",
            _count(estimate["tokens_per_s_per_gpu"] * world),
            f"{_count(estimate['tokens_per_s_per_gpu'])} a GPU",
        )
    mfu = (measured.mfu if measured else None) or estimate["mfu"]
    yield Tile(
        "MFU",
        "unknown" if mfu is None else f"{mfu:.1%}",
        "of the dense peak" if mfu is not None else "the peak of this device is not known",
    )
    used, room = estimate["memory_bytes_per_gpu"], estimate["usable_memory_bytes"]
    tone = "bad" if used > room else "good" if used < TIGHT * room else ""
    yield Tile(
        "memory a rank", f"{used / room:.0%}", f"of the budget: {format_bytes(used)} of {format_bytes(room)}", tone
    )
    if (price := estimate.get("cost_per_million_tokens")) is not None:
        yield Tile("cost", f"${price:.4f}", "a million tokens")
    if run and run.goodput is not None:
        yield Tile(
            "goodput",
            f"{run.goodput:.0%}",
            f"time in steps that count, {run.starts} start{'s' if run.starts != 1 else ''}",
        )


def _count(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def _alternatives(plan: Plan, found: SearchResult | None) -> str:
    """Show alternatives by time and memory, the fastest as a table, and why others were rejected."""
    if found is None:
        return paragraph("No layout of this job fits by the estimate, so there is nothing to compare with.", dim=True)
    usable = plan.estimate["usable_memory_bytes"]
    dots = [
        Dot(
            candidate.estimate.step_time_s,
            candidate.estimate.memory_bytes_per_gpu / GIB,
            f"{candidate.layout.brief()}: {format_seconds(candidate.estimate.step_time_s)}, "
            f"{format_bytes(candidate.estimate.memory_bytes_per_gpu)}",
            facts.is_chosen(plan, candidate),
        )
        for candidate in found.candidates
    ]
    if not any(dot.chosen for dot in dots):
        dots.append(
            Dot(
                plan.estimate["step_time_s"],
                plan.estimate["memory_bytes_per_gpu"] / GIB,
                f"{plan.layout.brief()}: this plan",
                True,
            )
        )
    fastest = found.best.estimate.step_time_s
    rows = [
        [c.layout.brief(), format_seconds(c.estimate.step_time_s), f"{c.estimate.step_time_s / fastest - 1:+.1%}",
         format_bytes(c.estimate.memory_bytes_per_gpu), f"{c.estimate.memory_bytes_per_gpu / usable:.0%}",
         _share(c.estimate.mfu)]
        for c in found.candidates[:SHOWN]
    ]  # fmt: skip
    chosen = next((i for i, c in enumerate(found.candidates[:SHOWN]) if facts.is_chosen(plan, c)), None)
    rejected = [[_reason(reason), f"{count:,}"] for reason, count in found.rejected.items()]
    return "".join([
        "<h3>Alternatives that fit</h3>",
        paragraph("Each dot is a layout, this plan is the large one.", dim=True),
        scatter(dots, x="s a step", y="GiB a GPU", label="step time against memory of the alternatives"),
        '<p id="alternative" class="out" aria-live="polite">Point at a dot, or tab to it.</p>',
            paragraph(_lead(plan, found)),
        table(["layout", "step", "slower", "memory", "of budget", "MFU"], rows, numbers=(1, 2, 3, 4, 5), chosen=chosen),
        f"<h3>Rejected of {found.searched:,} layouts</h3>",
        table(["reason", "layouts"], rejected, numbers=(1,)),
    ])  # fmt: skip


def _lead(plan: Plan, found: SearchResult) -> str:
    """Compare this plan with the fastest."""
    best, own_s = found.best, plan.estimate["step_time_s"]
    behind = own_s / best.estimate.step_time_s - 1
    if behind < 0.001:
        return "This plan is the fastest that fits, as estimated."
    return f"The fastest that fits is {best.layout.brief()}: this plan takes {behind:.1%} longer, as estimated."


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _reason(reason: str) -> str:
    return reason if reason in (UNFIT, SLOWER, OTHER_ORDER) else f"illegal: {reason}"


def _placement(plan: Plan) -> str:
    placement = plan.placement
    words = f"{_some(plan.grid.size, 'rank')} on {_some(placement.num_nodes, 'node')}. "
    words += f"Axis order {plan.layout.axis_order}: the first varies fastest."
    role = f'role="application" aria-label="{plan.grid.size} ranks on their GPUs"'
    return (
        f"{paragraph(words)}"
        '<div class="controls"><label>Colour by <select id="axis"></select></label>'
        '<div class="legend" id="legend"></div></div>'
        '<p id="rank" class="out" aria-live="polite">Point at a GPU, or focus the cluster and use the arrow keys.</p>'
        f'<div class="cluster" id="cluster" tabindex="0" {role}></div>'
    )


def _pipeline(plan: Plan, drawn: Pipeline) -> str:
    layout = plan.layout
    words = f"{layout.schedule}: {_some(drawn.micro_batches, 'micro-batch')} a step over {_some(layout.pp, 'stage')}"
    words += f" of {layout.virtual_stages} virtual stages each" if layout.virtual_stages > 1 else ""
    words += f"; {drawn.left_out:,} micro-batches in the middle are not drawn" if drawn.left_out else ""
    legend = [("forward", 0), ("backward", 2), ("gradients and optimizer", 7)]
    legend += [("weight gradients", 5)] if layout.schedule == "zb_h1" else []
    marks = "".join(f'<span><i style="background:var(--c{i})"></i>{name}</span>' for name, i in legend)
    return (
        f"{paragraph(words + ', to scale as predicted.')}"
        f'<div class="controls"><button id="zoom" type="button">Zoom</button><div class="legend">{marks}</div></div>'
        f'<div class="scroll" tabindex="0" id="pipeline" data-label="{escape(words)}"></div>'
        '<p id="box" class="out" aria-live="polite">Point at a box.</p>'
    )


def _some(number: int, what: str) -> str:
    """Format a number of things: 1 node, 8 nodes, 4 micro-batches."""
    plural = "es" if what.endswith("ch") else "s"
    return f"{number:,} {what}{'' if number == 1 else plural}"


def _time_bars(plan: Plan) -> str:
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


def _memory(plan: Plan) -> str:
    stages = facts.stage_memory(plan)
    usable = plan.estimate["usable_memory_bytes"]
    rows = {f"stage {i}" if len(stages) > 1 else "every rank": parts for i, parts in enumerate(stages)}
    words = {name: f"{format_bytes(sum(parts.values()))}" for name, parts in rows.items()}
    caption = (
        f"The whole bar is the budget of {format_bytes(usable)}; stage {plan.estimate['worst_stage']} needs the most."
    )
    return paragraph(caption) + stacked(rows, limit=usable, words=words)


def _measured(plan: Plan, run: RunFacts) -> str:
    """Compare predicted with measured values: the step, its parts, the memory."""
    measured, estimate = run.measured, plan.estimate
    if measured.step_s is None:
        return section("Predicted and measured", paragraph("No finished step yet: nothing was measured."))
    rows = [
        [
            "step",
            format_seconds(estimate["step_time_s"]),
            format_seconds(measured.step_s),
            f"{estimate['step_time_s'] / measured.step_s:.2f}",
        ]
    ]
    rows += [[PARTS[name], "", format_seconds(s), ""] for name, s in measured.split_s.items()]
    if measured.memory_bytes:
        kind = (
            "allocated" if plan.job.cluster.node.gpu.kind == "cuda" else "resident, with the interpreter and libraries"
        )
        rows.append(
            [
                "memory",
                format_bytes(estimate["memory_bytes_per_gpu"]),
                f"{format_bytes(measured.memory_bytes)} {kind}",
                "",
            ]
        )
    note = f"Medians of {measured.steps} steps without the first ones. "
    note += 'Parts after "including" are within forward and backward.'
    return section(
        "Predicted and measured",
        table(["", "predicted", "measured", "predicted / measured"], rows, numbers=(3,)),
        paragraph(note, dim=True),
    )


def _curves(run: RunFacts, plan: Plan) -> str:
    names = {"curve-loss": "Loss", "curve-step-time": "Step time", "curve-tokens": "Throughput"}
    drawn = [curve["id"] for curve in facts.curves(run, plan)]
    lost = sum(1 for step in run.steps if step.loss is not None and step.loss != step.loss)
    note = paragraph(f"The loss was not a number in {lost} steps: these are gaps in the curve.") if lost else ""
    return section("Over the steps", note, *(f'<h3>{names[i]}</h3><div id="{i}"></div>' for i in drawn))


def _starts(run: RunFacts) -> str:
    rows = [
        [str(phase.start), phase.phase.replace("_", " "), format_seconds(phase.median_s),
         f"{format_seconds(phase.slowest_s)}, {phase.slowest}" if phase.slowest_s > phase.median_s else ""]
        for phase in run.phases
    ]  # fmt: skip
    return section("Starts", table(["start", "phase", "after the command", "slowest"], rows, numbers=(2,)))


def _commands(plan: Plan) -> str:
    """Show commands for the same layout, and for a search that could choose another."""
    pins = " ".join(shlex.quote(word) for word in _pins(plan.layout))
    cluster, model = plan.job.cluster, plan.job.model
    job = f"cluster={cluster.name} cluster.num_nodes={cluster.num_nodes} model={model.name}"
    job += f" train.global_batch={plan.job.training.global_batch}"
    return f"<pre>launcher run {escape(job)} {escape(pins)}\nlauncher plan {escape(job)}</pre>"


def _pins(layout: Layout) -> Iterator[str]:
    plain = Layout(tp=1, pp=1, dp=1)
    for f in fields(layout):
        value = getattr(layout, f.name)
        if f.name in ("tp", "pp", "dp") or (value != getattr(plain, f.name) and f.name != "layer_split"):
            yield f"layout.{f.name}={str(value).lower() if isinstance(value, bool) else value}"
