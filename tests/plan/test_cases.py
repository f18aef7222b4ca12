"""launcher/planner/cases.md: every command gives the choice that the page names, and layouts that ran fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from launcher import Job
from launcher.cost import Estimate

PAGE = Path(__file__).parents[2] / "launcher" / "planner" / "cases.md"
SECTION = re.compile(
    r"^## (?P<name>.+)\n\n```bash\n(?P<plan>launcher plan [^`]+)```\n\n(?:Their layout: `(?P<theirs>.+)`\n)?",
    re.MULTILINE,
)
HEADER = """\
| case | published | theirs, estimated | fits | our choice | estimated |
|---|--:|--:|--:|---|--:|"""
CLOSE = 0.05  # estimates of the page may be off by this much before it has to be printed again


@dataclass(frozen=True)
class Case:
    """One section of the page: the words of its command, those of the practitioners' layout, and its table's row."""

    name: str
    plan: tuple[str, ...]
    theirs: tuple[str, ...]
    published: str

    @property
    def job(self) -> Job:
        return Job.from_overrides(self.plan)


@cache
def cases() -> dict[str, Case]:
    found = {}
    for match in SECTION.finditer(PAGE.read_text()):
        words = match["plan"].replace("\\\n", " ").split()[2:]
        published = shown(match["name"])[1]
        found[match["name"]] = Case(match["name"], tuple(words), tuple((match["theirs"] or "").split()), published)
    return found


def shown(name: str) -> list[str]:
    """The cells of a case's row on the page."""
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def row(case: Case) -> str:
    """What the table says of a case."""
    best = case.job.search(top=1).best
    cells = [case.name, case.published, "not printed", "", f"`{best.layout.brief()}`", seconds(best.estimate)]
    if case.theirs:
        theirs = case.job.with_(*case.theirs).estimate()
        rate = f", {theirs.model_tflops_per_gpu:.0f} TFLOP/s" if "TFLOP" in case.published else ""
        cells[2], cells[3] = seconds(theirs) + rate, f"{theirs.fit_probability:.0%}"
    return f"| {' | '.join(cells)} |"


def seconds(estimate: Estimate) -> str:
    low, high = estimate.step_time_interval_s
    return f"{estimate.step_time_s:.3g} s ({low:.3g}–{high:.3g})"


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"[\d.]+", cell)]


def test_the_page_has_at_least_twelve_cases_and_each_has_its_row() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) - 1 == len(cases()) == PAGE.read_text().count("\n## ") >= 12


@pytest.mark.parametrize("name", cases())
def test_a_row_is_what_the_planner_says(name: str) -> None:
    case = cases()[name]
    expected = [cell.strip() for cell in row(case).strip("|").split("|")]
    found = shown(name)
    assert found[4] == expected[4], f"print the row again: {row(case)}"
    for cell in (2, 3, 5):
        assert numbers(found[cell]) == pytest.approx(numbers(expected[cell]), rel=CLOSE, abs=3), row(case)


@pytest.mark.parametrize("name", [name for name, case in cases().items() if case.theirs])
def test_a_layout_that_ran_is_legal_and_fits(name: str) -> None:
    """`estimate` raises where a layout is illegal."""
    assert cases()[name].job.with_(*cases()[name].theirs).estimate().fits
