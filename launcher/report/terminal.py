"""Tables and sentences for people: ranked plans, their reasons, what was rejected, comparisons of clusters."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from launcher.layout import Layout
from launcher.plan.compare import Comparison, Row
from launcher.plan.result import Candidate, SearchResult
from launcher.units import format_bytes, format_count, format_seconds

PLAIN_WIDTH = 100  # columns where nobody says how wide the reader's screen is
UNKNOWN = "unknown"


def console(*, stderr: bool = False) -> Console:
    """A console that draws on a terminal and writes plain lines of fixed width elsewhere."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PLAIN_WIDTH, highlight=False, soft_wrap=False)


def show_plans(to: Console, result: SearchResult, why: Sequence[Sequence[str]], *, seconds: float) -> None:
    """The ranked plans, why the first is first, and what became of the others."""
    to.print(plans_table(result))
    to.print("TFLOP/s, memory and tok/s are those of one GPU")
    to.print(f"\nWhy {result.best.layout.brief()}:" if why and why[0] else "", soft_wrap=True)
    _bullets(to, why[0] if why else ())
    to.print(f"\n{rejected_text(result)} in {format_seconds(seconds)}", soft_wrap=True)


def plans_table(result: SearchResult) -> Table:
    """One line a plan, at most 100 columns."""
    job = result.job
    table = _table(f"{job.model.name} ({format_count(job.model.params)} parameters) on {_where(result)}")
    for name in ("#", "tp", "pp", "dp"):
        table.add_column(name, justify="right")
    extra = [key for key in ("cp", "ep") if any(getattr(c.layout, key) > 1 for c in result.candidates)]
    for name in (*extra, "v", "mb", "zero"):
        table.add_column(name, justify="right")
    table.add_column("recompute")
    table.add_column("sp")
    for name in ("step", "TFLOP/s", "MFU", "memory", "tok/s"):
        table.add_column(name, justify="right")
    orders = len({candidate.layout.axis_order for candidate in result.candidates}) > 1
    if orders:
        table.add_column("order")
    for rank, candidate in enumerate(result.candidates, 1):
        table.add_row(str(rank), *_layout_cells(candidate.layout, extra), *_estimate_cells(candidate, orders=orders))
    return table


def _where(result: SearchResult) -> str:
    cluster = result.job.cluster
    kind = "MIG slices" if cluster.node.is_mig else "CPU ranks" if cluster.node.gpu.kind == "cpu" else "GPUs"
    return f"{cluster.name}: {cluster.num_gpus} {kind}, {cluster.num_nodes} node{'s' if cluster.num_nodes > 1 else ''}"


def _layout_cells(layout: Layout, extra: Iterable[str]) -> list[str]:
    cells = [str(layout.tp), str(layout.pp), str(layout.dp), *(str(getattr(layout, key)) for key in extra)]
    cells += [str(layout.virtual_stages), str(layout.micro_batch), str(layout.zero_stage)]
    return [*cells, layout.recompute, "yes" if layout.sequence_parallel else "-"]


def _estimate_cells(candidate: Candidate, *, orders: bool) -> list[str]:
    e = candidate.estimate
    cells = [
        format_seconds(e.step_time_s),
        f"{e.model_tflops_per_gpu:.1f}" if e.model_tflops_per_gpu >= 1 else f"{e.model_tflops_per_gpu:.3f}",
        f"{e.mfu:.1%}" if e.mfu is not None else UNKNOWN,
        format_bytes(e.memory_bytes_per_gpu),
        f"{e.tokens_per_s_per_gpu:,.0f}",
    ]
    return cells + ([_order(candidate.layout)] if orders else [])


def _order(layout: Layout) -> str:
    """The axis order without the axes of one rank."""
    return "-".join(axis for axis in layout.axis_order.split("-") if layout.degree(axis) > 1)


def rejected_text(result: SearchResult) -> str:
    """How many layouts were considered and what became of them, by reason."""
    counts = sorted(result.rejected.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{count:,} {reason}" for reason, count in counts)
    return f"considered {result.searched:,} layouts" + (f": {told}" if told else "")


def show_comparison(to: Console, comparison: Comparison) -> None:
    """The best plan of each cluster or size, and what follows for the choice between them."""
    to.print(comparison_table(comparison))
    _bullets(to, [f"{row.label}: {row.note}" for row in comparison.rows if row.note])
    _bullets(to, comparison.verdicts)


def comparison_table(comparison: Comparison) -> Table:
    """One line a cluster; what is not known of any row has no column."""
    tokens = comparison.tokens
    scaled = any(row.scaling is not None for row in comparison.rows)
    table = _table("best plan of each" + (f", for {format_count(tokens)} training tokens" if tokens else ""))
    table.add_column("cluster")
    table.add_column("GPUs", justify="right")
    table.add_column("best layout")
    names = [
        "tok/s",
        "MFU",
        *(["scaling"] if scaled else []),
        *(["days", "GPU-h", "cost"] if tokens else ["$/M tokens"]),
    ]
    for name in names:
        table.add_column(name, justify="right")
    for row in comparison.rows:
        cells = _row_cells(row, scaled=scaled, timed=bool(tokens)) if row.best else ["-"] * len(names)
        table.add_row(row.label, f"{row.num_gpus:,}", row.brief, *cells)
    return table


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


def _optional(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))


def _bullets(to: Console, lines: Iterable[str]) -> None:
    for line in lines:
        to.print(f"  - {line}", soft_wrap=True, markup=False)
