"""Tables and sentences for people: ranked plans, their reasons, what was rejected, comparisons of clusters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TextIO

from launcher.console import has_colour, show, terminal_width
from launcher.cost import Estimate
from launcher.layout import Layout
from launcher.layout.degrees import DEFAULT_AXIS_ORDER as USUAL_ORDER
from launcher.layout.job import Job
from launcher.planner import Plan
from launcher.planner.compare import Bill, Comparison, Row
from launcher.planner.distinct import Distinct, distinct
from launcher.planner.launch_only import has_model
from launcher.planner.result import Candidate, SearchResult
from launcher.planner.search import OTHER_ORDER, SLOWER, UNFIT
from launcher.report.table import LEFT, RIGHT, draw
from launcher.units import format_bytes, format_count, format_seconds

UNKNOWN = "unknown"
SHOWN_BY_V = ("1f1b", "interleaved")  # schedules that the number of virtual stages says already
NOT_ILLEGAL = (UNFIT, SLOWER, OTHER_ORDER)  # reasons to reject a legal layout


def show_plans(
    to: TextIO,
    result: SearchResult,
    why: Sequence[Sequence[str]],
    *,
    seconds: float,
    top: int | None = None,
    listed: Sequence[Candidate] | None = None,
) -> None:
    """Print the ranked plans (the first `top` that differ), why the best is best, and why others were rejected.

    `listed`: the plans of the table, where they are not those of the search in its order.
    """
    shown = result if listed is None else replace(result, candidates=tuple(listed))
    _print(to, plans_table(shown, top=top, bold=has_colour(to), width=terminal_width(to)))
    _print(to, ["step: nine of ten runs take the time in parentheses; memory and tok/s are those of one GPU"])
    if why and why[0]:
        _print(to, ["", f"Why {result.best.layout.brief()}:", *_bullets(why[0])])
    _print(to, ["", f"{rejected_text(result)} in {format_seconds(seconds)}"])


def show_plan(to: TextIO, plan: Plan) -> None:
    """Print an existing plan with its reasons."""
    estimate = plan.estimate
    lines = [*heading(plan.job), plan.layout.brief()]
    if "step_time_s" in estimate:
        mfu = UNKNOWN if estimate["mfu"] is None else f"{estimate['mfu']:.1%}"
        memory = format_bytes(estimate["memory_bytes_per_gpu"])
        lines[-1] += f": a step of {format_seconds(estimate['step_time_s'])}, MFU {mfu}, {memory} of each GPU"
    _print(to, [*lines, *_bullets(plan.why), f"planned by launcher {plan.launcher}"])


def plans_table(
    result: SearchResult, *, top: int | None = None, bold: bool = False, width: int | None = None
) -> list[str]:
    """Return the job, a header and one line per plan; as wide as the terminal, if there is one.

    With `top`: the first that differ, each with its near-duplicates in words.
    """
    plans = [Distinct(each) for each in result.candidates] if top is None else distinct(result.candidates, top=top)
    candidates = [plan.candidate for plan in plans]
    extra = [key for key in ("cp", "ep") if any(getattr(c.layout, key) > 1 for c in candidates)]
    orders = any(_order(candidate.layout) != _order(candidate.layout, USUAL_ORDER) for candidate in candidates)
    columns = dict.fromkeys(("#", "tp", "pp", "dp", *extra, "v", "mb", "zero"), RIGHT)
    named = any(plan.candidate.layout.schedule not in SHOWN_BY_V for plan in plans)
    columns |= {"schedule": LEFT} if named else {}
    offloads = any(candidate.layout.offload_optimizer for candidate in candidates)
    columns |= {"offload": LEFT} if offloads else {}
    columns |= {"recompute": LEFT, "sp": LEFT, "step": LEFT}
    columns |= dict.fromkeys(("MFU", "memory", "fits", "tok/s"), RIGHT)
    columns |= ({"order": LEFT} if orders else {}) | ({"also with": LEFT} if any(plan.also for plan in plans) else {})
    rows = [
        [str(rank), *_layout_cells(plan.candidate.layout, extra, named=named, offloads=offloads)]
        + _estimate_cells(plan.candidate, orders=orders)
        + (["; ".join(plan.also)] if "also with" in columns else [])
        for rank, plan in enumerate(plans, 1)
    ]
    spare = ("tok/s", "zero", "v", "fits", "schedule")  # the layout and the step already contain these
    return [*heading(result.job), *draw(columns, rows, bold=bold, width=width, spare=spare)]


def heading(job: Job) -> list[str]:
    """Return the job in two lines: model and machine, then batch, sequence, dtype and software; of a job without a
    model in one.
    """
    if not has_model(job):
        return [f"no model, on {_where(job)}"]
    model, training, stack = job.model, job.training, job.stack
    tokens = format_count(training.global_batch * model.seq_len)
    batch = f"global batch {training.global_batch:,} × {model.seq_len:,} tokens ({tokens} a step)"
    return [
        f"{model.name} ({format_count(model.params)} parameters) on {_where(job)}",
        f"{batch}, {training.dtype}{' with products in fp8' if training.fp8 else ''}, stack {stack.name}",
    ]


def _where(job: Job) -> str:
    cluster = job.cluster
    kind = "MIG slices" if cluster.node.is_mig else "CPU ranks" if cluster.node.gpu.kind == "cpu" else "GPUs"
    return f"{cluster.name}: {cluster.num_gpus} {kind}, {cluster.num_nodes} node{'s' if cluster.num_nodes > 1 else ''}"


def _layout_cells(layout: Layout, extra: Iterable[str], *, named: bool, offloads: bool) -> list[str]:
    cells = [str(layout.tp), str(layout.pp), str(layout.dp), *(str(getattr(layout, key)) for key in extra)]
    cells += [str(layout.virtual_stages), str(layout.micro_batch)]
    cells += [f"{layout.zero_stage}/{layout.shard_group}" if layout.shard_group else str(layout.zero_stage)]
    cells += [layout.schedule if layout.pp > 1 else "-"] if named else []
    cells += ["yes" if layout.offload_optimizer else "-"] if offloads else []
    part = f" {layout.recompute_fraction:.0%}" if layout.recompute_fraction < 1 else ""
    return [*cells, layout.recompute + part, "yes" if layout.sequence_parallel else "-"]


def _estimate_cells(candidate: Candidate, *, orders: bool) -> list[str]:
    e = candidate.estimate
    cells = [
        _step(e),
        f"{e.mfu:.1%}" if e.mfu is not None else UNKNOWN,
        format_bytes(e.memory_bytes_per_gpu),
        f"{e.fit_probability:.0%}",
        f"{e.tokens_per_s_per_gpu:,.0f}",
    ]
    return cells + ([_order(candidate.layout)] if orders else [])


def _step(e: Estimate) -> str:
    """A step's time and the interval of nine of ten runs: `7.30 s (6.7–8.2)`, in one unit."""
    time = f"{e.step_time_s:.2f} s" if 1 <= e.step_time_s < 100 else format_seconds(e.step_time_s)
    scale = {"s": 1.0, "ms": 1e3, "µs": 1e6}[time.split()[1]]
    faster, slower = (
        f"{end * scale:.3g}" if end * scale < 1000 else f"{end * scale:.0f}" for end in e.step_time_interval_s
    )
    return f"{time} ({faster}–{slower})"


def _order(layout: Layout, axis_order: str | None = None) -> str:
    """Return the layout's axis order, or another, without axes of one rank."""
    return "-".join(axis for axis in (axis_order or layout.axis_order).split("-") if layout.degree(axis) > 1)


def rejected_text(result: SearchResult) -> str:
    """Return how many layouts were considered, and how many were rejected, by reason."""
    counts = sorted(result.rejected.items(), key=lambda item: (-item[1], item[0]))
    counted = ", ".join(
        f"{count:,} {reason if reason in NOT_ILLEGAL else f'illegal ({reason})'}" for reason, count in counts
    )
    return f"considered {result.searched:,} layouts" + (f": {counted}" if counted else "")


def show_comparison(to: TextIO, comparison: Comparison) -> None:
    """Print the best plan of each cluster or size, and conclusions for the choice between them."""
    _print(to, comparison_table(comparison, bold=has_colour(to), width=terminal_width(to)))
    _print(to, _bullets(f"{row.label}: {row.note}" for row in comparison.rows if row.note))
    _print(to, _bullets(comparison.verdicts))


def comparison_table(comparison: Comparison, *, bold: bool = False, width: int | None = None) -> list[str]:
    """Return a title, a header and one line per cluster; omit columns that are unknown in all rows."""
    tokens, multiple = comparison.tokens, comparison.tokens_per_parameter
    scaled = any(row.scaling is not None for row in comparison.rows)
    names = [
        "tok/s",
        "MFU",
        *(["scaling"] if scaled else []),
        *(["days", "GPU-h", "cost"] if tokens or multiple else ["$/M tokens"]),
    ]
    columns = {comparison.what: LEFT, "GPUs": RIGHT, "best layout": LEFT} | dict.fromkeys(names, RIGHT)
    rows = []
    for row in comparison.rows:
        cells = _row_cells(row, scaled=scaled, timed=bool(tokens or multiple)) if row.best else ["-"] * len(names)
        rows.append([row.label, f"{row.num_gpus:,}", row.brief, *cells])
    each = f", for {multiple:g} training tokens a parameter" if multiple else ""
    title = "best plan of each" + (f", for {format_count(tokens)} training tokens" if tokens else each)
    return [title, *draw(columns, rows, bold=bold, width=width)]


def _row_cells(row: Row, *, scaled: bool, timed: bool) -> list[str]:
    if row.best is None:
        return []
    mfu, price = row.best.estimate.mfu, row.best.estimate.cost_per_million_tokens
    cells = [f"{row.tokens_per_s:,.0f}", _optional(mfu, "{:.1%}")]
    cells += [_optional(row.scaling, "{:.0%}")] if scaled else []
    if not timed:
        return [*cells, _optional(price, "{:.4f}")]
    return [
        *cells,
        _optional(row.days, "{:,.2f}"),
        _optional(row.gpu_hours, "{:,.0f}"),
        _optional(row.cost, "${:,.0f}"),
    ]


def bill_text(bill: Bill, of: str) -> str:
    """Describe the cost of training for a number of tokens in one sentence; `of`: which plan."""
    paid = f"${bill.cost:,.0f}" if bill.cost is not None else "at an unknown price"
    taken = f"{bill.days:,.1f} days, {bill.gpu_hours:,.0f} GPU-hours, {paid}"
    return f"{format_count(bill.tokens)} training tokens take {taken} with {of}"


def _optional(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)


def _bullets(lines: Iterable[str]) -> list[str]:
    return [f"  - {line}" for line in lines]


def _print(to: TextIO, lines: Iterable[str]) -> None:
    show(*lines, to=to)
