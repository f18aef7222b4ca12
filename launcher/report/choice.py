"""The choice among layouts, as a part of a page: those that fit, those that just do not, and why."""

from __future__ import annotations

from itertools import islice

from launcher.cost import Estimate
from launcher.cost.model import CostModel
from launcher.planner import Plan
from launcher.planner.explain import lacking, misfits, slower
from launcher.planner.result import Candidate, SearchResult
from launcher.planner.search import OTHER_ORDER, SLOWER, UNFIT
from launcher.report import facts
from launcher.report.markup import Axis, Dot, paragraph, scatter, table
from launcher.units import format_bytes, format_seconds

SHOWN = 8  # alternatives in the table; the scatter has more
MISFITS = 24  # that do not fit, in the scatter
FAR = 1.6  # times the budget: what needs more is not drawn, so that the others can be told apart


def choice(plan: Plan, found: SearchResult | None) -> str:
    """Show alternatives by time and memory, the fastest as a table, and why others were rejected."""
    if found is None:
        return paragraph("No layout of this job fits by the estimate, so there is nothing to compare with.", dim=True)
    usable = plan.estimate["usable_memory_bytes"]
    legend = [("chosen", "this plan"), ("fits", "fits"), ("misfit", f"does not fit in {format_bytes(usable)}")]
    dots = _dots(plan, found)
    kinds = {dot.kind for dot in dots}
    marks = "".join(f'<span><i class="mark {kind}"></i>{words}</span>' for kind, words in legend if kind in kinds)
    return "".join([
        "<h3>Alternatives by time and memory</h3>",
        f'<div class="legend">{marks}</div>',
        scatter(
            dots, x=Axis("step time", format_seconds), y=Axis("memory a GPU", format_bytes), limit=usable,
            label="step time against memory of the alternatives",
        ),
        '<p id="alternative" class="out" aria-live="polite">Point at a dot, or tab to it: layout and reason.</p>',
        paragraph(_lead(plan, found)),
        _fastest(plan, found, usable),
        f"<h3>Rejected of {found.searched:,} layouts</h3>",
        table(["reason", "layouts"], [[_reason(r), f"{n:,}"] for r, n in found.rejected.items()], numbers=(1,)),
    ])  # fmt: skip


def _dots(plan: Plan, found: SearchResult) -> list[Dot]:
    budget = plan.estimate["usable_memory_bytes"]
    dots = [_dot(plan, found, candidate) for candidate in found.candidates]
    if not any(dot.kind == "chosen" for dot in dots):
        words = f"{plan.layout.brief()}: this plan"
        dots.append(Dot(plan.estimate["step_time_s"], plan.estimate["memory_bytes_per_gpu"], words, "chosen"))
    near = (
        candidate
        for candidate in misfits(plan.job, found.candidates, CostModel(plan.job))
        if candidate.estimate.memory_bytes_per_gpu < FAR * budget
    )
    return dots + [
        Dot(
            candidate.estimate.step_time_s,
            candidate.estimate.memory_bytes_per_gpu,
            f"{_figures(candidate)}; {lacking(candidate.estimate)}",
            "misfit",
        )
        for candidate in islice(near, MISFITS)
    ]


def _dot(plan: Plan, found: SearchResult, candidate: Candidate) -> Dot:
    kind = "chosen" if facts.is_chosen(plan, candidate) else "fits"
    behind = "" if candidate is found.best else f"; {slower(found.best.estimate, candidate.estimate)} than the fastest"
    words = f"{_figures(candidate)}{behind or '; the fastest that fits'}"
    return Dot(candidate.estimate.step_time_s, candidate.estimate.memory_bytes_per_gpu, words, kind)


def _figures(candidate: Candidate) -> str:
    estimate = candidate.estimate
    time, memory = format_seconds(estimate.step_time_s), format_bytes(estimate.memory_bytes_per_gpu)
    return f"{candidate.layout.brief()}: {time}, {memory}"


def _fastest(plan: Plan, found: SearchResult, usable: float) -> str:
    fastest, shown = found.best.estimate.step_time_s, found.candidates[:SHOWN]
    names = [c.layout.brief() for c in shown]
    rows = [
        [name if names.count(name) == 1 else f"{name} {c.layout.schedule}", *_row(c.estimate, fastest, usable)]
        for name, c in zip(names, shown, strict=True)
    ]
    chosen = next((i for i, c in enumerate(shown) if facts.is_chosen(plan, c)), None)
    columns = ["layout", "step", "slower", "memory", "of budget", "MFU"]
    return table(columns, rows, numbers=(1, 2, 3, 4, 5), chosen=chosen)


def _row(estimate: Estimate, fastest_s: float, usable: float) -> list[str]:
    return [
        format_seconds(estimate.step_time_s),
        f"{estimate.step_time_s / fastest_s - 1:+.1%}",
        format_bytes(estimate.memory_bytes_per_gpu),
        f"{estimate.memory_bytes_per_gpu / usable:.0%}",
        "unknown" if estimate.mfu is None else f"{estimate.mfu:.1%}",
    ]


def _lead(plan: Plan, found: SearchResult) -> str:
    """Compare this plan with the fastest."""
    best, own_s = found.best, plan.estimate["step_time_s"]
    behind = own_s / best.estimate.step_time_s - 1
    if behind < 0.001:
        return "This plan is the fastest that fits, as estimated."
    return f"The fastest that fits is {best.layout.brief()}: this plan takes {behind:.1%} longer, as estimated."


def _reason(reason: str) -> str:
    return reason if reason in (UNFIT, SLOWER, OTHER_ORDER) else f"illegal: {reason}"
