"""Tables for people: plain where there is no terminal, readable at 100 columns."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from shapes import cluster, job, model

from launcher.cost.model import CostModel
from launcher.layout import LayoutRequest
from launcher.planner.compare import Case, compare
from launcher.planner.explain import reasons
from launcher.planner.result import SearchResult
from launcher.planner.search import search
from launcher.report.terminal import comparison_table, plans_table, show_comparison, show_plans

LARGE = job(on=cluster(nodes=16, nodes_per_leaf=4), of=model(hidden=12288, layers=96, heads=96), global_batch=512)


PLAIN_WIDTH = 100


def shown(show: Callable[..., None], *arguments: object, **options: object) -> str:
    to = io.StringIO()
    show(to, *arguments, **options)
    return to.getvalue()


@pytest.fixture(scope="module", params=[{}, {"cp": 2}, {"cp": 2, "zero_stage": 3, "recompute": "selective"}], ids=str)
def result(request: pytest.FixtureRequest) -> SearchResult:
    return search(LARGE, LayoutRequest(**request.param), top=10)


def test_the_table_of_plans_fits_100_columns_with_nothing_cut(result: SearchResult) -> None:
    lines = plans_table(result)
    assert max(len(line.rstrip()) for line in lines) <= PLAIN_WIDTH
    assert len(lines) == len(result.candidates) + 3
    assert not any("…" in line for line in lines)


def test_each_line_holds_its_plan(result: SearchResult) -> None:
    lines = plans_table(result)[3:]
    for line, candidate in zip(lines, result.candidates, strict=True):
        cells = line.split()
        assert cells[1:4] == [str(candidate.layout.tp), str(candidate.layout.pp), str(candidate.layout.dp)]
        assert f"{candidate.estimate.mfu:.1%}" in cells


def test_the_reasons_and_the_counts_follow(result: SearchResult) -> None:
    why = reasons(result, CostModel(LARGE))
    text = shown(show_plans, result, why, seconds=0.25)
    assert f"Why {result.best.layout.brief()}:" in text
    assert all(line in text for line in why[0])
    assert f"considered {result.searched:,} layouts" in text
    assert all(f"{count:,} {reason}" in text for reason, count in result.rejected.items())
    assert "\x1b" not in text


def test_a_peak_that_is_not_known_is_reported_as_unknown() -> None:
    gpu = replace(LARGE.cluster.node.gpu, peak_flops={}, kind="cpu")
    unknown = replace(cluster(domains=(2,)), node=replace(cluster(domains=(2,)).node, gpu=gpu))
    found = search(job(on=unknown, of=model(layers=2), global_batch=4), LayoutRequest(), top=1)
    assert any("unknown" in line for line in plans_table(found))


def test_a_comparison_shows_scaling_and_cost_where_they_are_known() -> None:
    cases = [Case(str(n), job(on=cluster(nodes=n), of=model(), global_batch=64), LayoutRequest()) for n in (1, 2)]
    lines = comparison_table(compare(cases, tokens=1e12))
    assert all(name in lines[1] for name in ("scaling", "days", "GPU-h", "cost"))
    assert max(len(line.rstrip()) for line in lines) <= PLAIN_WIDTH
    plain = comparison_table(compare(cases[:1]))
    assert "scaling" not in plain[1] and "$/M" in plain[1]


def test_a_cluster_without_a_plan_keeps_its_line_and_its_reason() -> None:
    cases = [Case("small", job(on=cluster(memory_gib=1), of=model(), global_batch=64), LayoutRequest())]
    text = shown(show_comparison, compare(cases))
    assert "small" in text and "none" in text and "fits in memory" in text


def test_only_a_terminal_gets_its_names_in_bold(result: SearchResult) -> None:
    plain, bold = plans_table(result), plans_table(result, bold=True)
    assert bold[2] == f"\x1b[1m{plain[2]}\x1b[0m"
    assert bold[:2] + bold[3:] == plain[:2] + plain[3:]
