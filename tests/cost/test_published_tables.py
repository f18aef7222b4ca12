"""Estimates against published, measured runs: two papers' tables one by one, and all runs of tests/data together."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from judging import (
    PAPERS,
    Judged,
    judge,
    judged_left_out,
    kind,
    paper_table,
    percent,
    predict,
    recorded_constants,
    stack_table,
    totals,
)
from published import RUNS, read_runs, table

from launcher.cost import CostModel
from launcher.cost.constants import DEFAULT
from launcher.cost.estimate import COMMUNICATION

ROOT = Path(__file__).parents[2]
COST_PAGE = ROOT / "launcher" / "cost" / "README.md"
PAGES = (ROOT / "README.md", COST_PAGE)
NARAYANAN, KORTHIKANTI = "narayanan2021_table1", "korthikanti2022_table5"


@pytest.mark.parametrize(
    ("source", "stated", "bound"),
    [(NARAYANAN, True, 0.025), (NARAYANAN, False, 0.05), (KORTHIKANTI, True, 0.027), (KORTHIKANTI, False, 0.027)],
)
def test_mean_error_of_a_published_table_stays_bounded(source: str, stated: bool, bound: float) -> None:
    errors = [run.error() for run in table(source, stated=stated)]
    assert len(errors) >= 8
    assert statistics.mean(map(abs, errors)) <= bound
    assert max(map(abs, errors)) <= 0.10


def test_every_run_of_the_two_tables_fits_the_memory_it_ran_in() -> None:
    for run in (*table(NARAYANAN), *table(KORTHIKANTI)):
        assert run.estimate().fits, run.name


def test_selective_recomputation_is_faster_than_full_as_measured() -> None:
    runs = {(run.layout.world_size, run.layout.recompute): run for run in table(KORTHIKANTI)}
    for size in {size for size, _ in runs}:
        full, selective = runs[size, "full"], runs[size, "selective"]
        measured = (full.step_s or 0.0) / (selective.step_s or 1.0)
        estimated = full.estimate().step_time_s / selective.estimate().step_time_s
        assert estimated == pytest.approx(measured, rel=0.08), size


@pytest.mark.parametrize(("stack", "kernel"), [("scaling", "flash1"), ("fsdp", "triton")])
def test_runs_with_each_kernel_of_flash_attention_1_have_no_bias(stack: str, kernel: str) -> None:
    runs = [run for run in read_runs() if run.step_s and run.stack == stack and "a100" in run.job.cluster.node.gpu.name]
    runs = [run for run in runs if run.job.stack.attention_kernel(run.job.training) == kernel]
    errors = [run.error() for run in runs]
    assert len(errors) > 30
    assert abs(statistics.mean(errors)) < 0.02 and statistics.mean(map(abs, errors)) < 0.04


@dataclass(frozen=True)
class Everything:
    """All published runs, what is estimated of them, and of the software that each fit left out."""

    stated: Judged
    names: Judged
    left_out: dict[str, float | None]
    table: list[str]
    on_h100: int


@cache
def everything() -> Everything:
    runs, by_name = read_runs(), read_runs(stated=False)
    predictions = predict(runs, DEFAULT)
    left_out = judged_left_out(runs, recorded_constants())
    return Everything(
        stated=judge(runs, predictions),
        names=judge(by_name, predict(by_name, DEFAULT)),
        left_out=totals(left_out),
        table=stack_table(runs, predictions, left_out),
        on_h100=sum(1 for run in runs if run.step_s and kind(run) != run.stack),
    )


def test_the_error_over_all_published_runs_stays_bounded() -> None:
    found = everything()
    assert found.stated.rows > 700
    assert (found.stated.error or 1) <= 0.05 and (found.names.error or 1) <= 0.06
    for judged in (found.stated, found.names):
        assert (judged.agrees or 0) >= 0.965 and judged.false_fits <= 4
        assert 0.88 <= (judged.covered or 0) <= 0.97


def test_the_table_by_software_is_what_the_command_prints() -> None:
    """Constants without each software are those of the last `generalize.py --leave-out --record` (28 s of CPU)."""
    page = COST_PAGE.read_text()
    wrong = [line for line in everything().table if line not in page.splitlines()]
    assert wrong == [], "print it again: python tests/benchmarks/generalize.py --leave-out --record"


@pytest.mark.parametrize("paper", PAPERS, ids=[title for title, *_ in PAPERS])
def test_a_published_table_on_the_page_is_what_the_command_prints(paper: tuple[str, str, int]) -> None:
    page = COST_PAGE.read_text()
    assert "\n".join(paper_table(*paper)) in page, "print it again: python tests/benchmarks/published_tables.py"


@pytest.mark.parametrize("file", PAGES, ids=[str(file.relative_to(ROOT)) for file in PAGES])
def test_the_words_over_all_runs_have_the_figures_of_the_table(file: Path) -> None:
    found, text = everything(), " ".join(file.read_text().split())
    stated, out = found.stated, found.left_out
    for words in (
        f"against {stated.rows} published, measured runs and {stated.out_of_memory} that ran out of memory",
        f"{stated.rows - found.on_h100} runs on A100, of six kinds of software, and {found.on_h100} on H100",
        f"The mean error is {percent(stated.error)} with what the sources say of their software, "
        f"{percent(found.names.error)} with its name alone (`--names`), and {percent(out['error'])} for software",
        f"contains {whole(stated.covered)} of the measured times, {whole(out['covered'])} where the software was left",
        f"{whole(stated.agrees)} agree; of {stated.out_of_memory} that ran out of memory {stated.false_fits} were said",
    ):
        assert words in text
    if file == COST_PAGE:
        assert f"(it is {whole(out['width'])} of the step wide there)" in text


def test_left_out_intervals_hold_whatever_share_of_a_step_communicates() -> None:
    """They were as wide for steps that compute as for those that communicate, and held half of the latter."""
    fitted = recorded_constants()
    inside: dict[float, list[bool]] = {0.05: [], 0.15: [], 1.0: []}
    for run in read_runs():
        if run.step_s and not run.debugging and kind(run) in fitted:
            found = CostModel(run.job, fitted[run.stack]).estimate(run.layout)
            low, high = found.step_time_interval_s
            share = sum(found.time[part] for part in COMMUNICATION) / found.step_time_s
            inside[next(bound for bound in inside if share <= bound)].append(low <= run.step_s <= high)
    for bound, covered in inside.items():
        assert len(covered) > 100 and 0.85 <= statistics.mean(covered) <= 0.97, bound


def whole(share: float | None) -> str:
    return f"{100 * (share or 0):.0f} %"


def test_every_source_is_named_where_its_figures_are_kept() -> None:
    page = (RUNS.parent / "README.md").read_text()
    named = [word.strip("`").removesuffix("*") for word in page.replace(",", " ").split() if word.startswith("`")]
    for source in {run.source for run in read_runs()}:
        assert any(source == name or (name.endswith("_") and source.startswith(name)) for name in named), source
