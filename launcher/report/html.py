"""One self-contained HTML page about a plan or a run, with the most important facts first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from launcher.planner import Plan, read_plan
from launcher.planner.record import check_estimate
from launcher.report import facts
from launcher.report.benchmark import benchmark_page
from launcher.report.choice import choice
from launcher.report.drawings import memory, pipeline, placement, time_bars
from launcher.report.facts import RunFacts
from launcher.report.markup import Tile, bullets, document, paragraph, section, tiles
from launcher.report.measured import curves, measured, origin, starts
from launcher.report.reproduce import commands
from launcher.run.folder import RunFolder
from launcher.run.rates import read_rates
from launcher.units import format_bytes, format_count, format_seconds

TIGHT = 0.95  # of the memory budget: above this, a plan has little room


def run_page(folder: RunFolder) -> str:
    """Return the page of a run folder: its plan and measurements so far, or a benchmark's rates.

    Raises InputError without a plan.
    """
    plan = read_plan(folder.present_plan)
    check_estimate(plan, str(folder.present_plan))
    rates = read_rates(folder.result)
    return benchmark_page(plan, rates, name=folder.path.name) if rates else page(plan, RunFacts.read(folder))


def page(plan: Plan, run: RunFacts | None = None, *, given: Sequence[str] = ()) -> str:
    """Return the page of a plan, with its run, if any. `given`: the words that the plan came from."""
    if not plan.estimate:
        return _program_page(plan, run)
    model, cluster, layout = plan.job.model, plan.job.cluster, plan.layout
    title = f"{model.name} on {cluster.name}: {layout.brief()}"
    drawn = facts.pipeline(plan)
    body = [
        _header(plan, title, run),
        "<main>",
        section("Why this layout", bullets(plan.why), choice(plan, facts.alternatives(plan))),
        section("Where the ranks are", placement(plan)),
        section("One step", pipeline(plan, drawn), time_bars(plan)),
        section("Memory by stage", memory(plan)),
        *([measured(plan, run), curves(run, plan), starts(run), origin(run)] if run and run.began else []),
        section("Run it", f"<pre>{escape(chr(10).join(commands(plan, run, given)))}</pre>"),
        "</main>",
    ]
    data = {
        "placements": {"": facts.placement_data(plan)},
        "pipelines": {"": drawn.to_data(layout.pp)},
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
        section("Where the ranks are", placement(plan)),
        *([starts(run), origin(run)] if run and run.began else []),
        "</main>",
    ]
    return document(title, body, {"placements": {"": facts.placement_data(plan)}, "curves": []})


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
    between = f" ({_range(interval)})" if interval else ""
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
            "step, predicted",
            format_seconds(predicted),
            f"nine of ten runs: {_range(interval)}" if interval else "not measured yet",
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


def _range(interval: Sequence[float]) -> str:
    return f"{format_seconds(interval[0])} to {format_seconds(interval[1])}"


def _count(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"
