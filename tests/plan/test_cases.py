"""launcher/planner/cases.md: every command gives the choice that the page names, and layouts that ran fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from launcher import Job
from launcher.cost import Estimate
from launcher.errors import NoLayoutFits

PAGE = Path(__file__).parents[2] / "launcher" / "planner" / "cases.md"
SECTION = re.compile(
    r"^## (?P<name>.+)\n\n```bash\n(?P<plan>launcher plan [^`]+)```\n\n(?:Their layout: `(?P<theirs>.+)`\n)?",
    re.MULTILINE,
)
HEADER = """\
| case | published | theirs, estimated | fits | our choice | estimated |
|---|--:|--:|--:|---|--:|"""
FIGURE = re.compile(
    r"^\| (?P<what>theirs|search|refused|plan)(?: `(?P<words>[^`]+)`)? \| (?P<says>.+) \|$", re.MULTILINE
)
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


@dataclass(frozen=True)
class Figure:
    """A figure of a section's own table: what it is of, the keys next to it, and what the page says."""

    case: str
    what: str
    words: tuple[str, ...]
    says: str

    def __str__(self) -> str:
        return f"{self.case}: {self.what} {' '.join(self.words)}"


def sections() -> dict[str, str]:
    parts = PAGE.read_text().split("\n## ")[1:]
    return {name: text for part in parts for name, _, text in [part.partition("\n")]}


def figures() -> list[Figure]:
    return [
        Figure(name, row["what"], tuple((row["words"] or "").split()), row["says"])
        for name, text in sections().items()
        for row in FIGURE.finditer(text)
    ]


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
    head, _, _ = PAGE.read_text().partition("\n## ")
    rows = [line for line in head.splitlines() if line.startswith("| ")]
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


def by_unit(estimate: Estimate) -> dict[str, float]:
    """An estimate's figures by the units in which the page has them."""
    mfu, hfu = estimate.mfu or 0.0, estimate.hfu or 0.0
    return {
        "s": estimate.step_time_s,
        "GiB": estimate.memory_bytes_per_gpu / 2**30,
        "TFLOP/s": estimate.model_tflops_per_gpu,
        "TFLOP/s recomputed": estimate.model_tflops_per_gpu * hfu / mfu,
        "% of the peak": 100 * mfu,
        "tokens/s a GPU": estimate.tokens_per_s_per_gpu,
        "% for experts' messages": 100 * estimate.time["ep_comm"] / estimate.step_time_s,
    }


def estimate_of(figure: Figure) -> Estimate:
    case = cases()[figure.case]
    if figure.what == "plan":
        return Job.from_overrides(figure.words).estimate()
    if figure.what == "theirs":
        return case.job.with_(*case.theirs).with_(*figure.words).estimate()
    best = case.job.with_(*figure.words).search(top=1).best
    assert best.layout.brief() == figure.says.split("`")[1]
    return best.estimate


@pytest.mark.parametrize("figure", figures(), ids=str)
def test_a_figure_of_a_sections_own_table_is_what_the_planner_says(figure: Figure) -> None:
    if figure.what == "refused":
        with pytest.raises(NoLayoutFits) as refused:
            cases()[figure.case].job.with_(*figure.words).search(top=1)
        assert f"What would help: {figure.says}" in str(refused.value)
        return
    found = by_unit(estimate_of(figure))
    for said in figure.says.split("` ")[-1].split(", "):
        number, _, unit = said.partition(" ")
        assert float(number) == pytest.approx(found[unit], rel=CLOSE), found


def test_how_far_off_an_estimate_is_follows_from_the_table() -> None:
    checked = 0
    for name, text in sections().items():
        for percent, way in re.findall(r"[Tt]he estimate is (\d+) % too (fast|slow)", text.replace("\n", " ")):
            published, theirs = numbers(shown(name)[1])[0], numbers(shown(name)[2])[0]
            assert round(100 * (theirs / published - 1)) == (-1 if way == "fast" else 1) * int(percent), name
            checked += 1
    assert checked >= 2


def test_the_published_speed_of_65b_is_in_the_interval_of_our_choice() -> None:
    cells = shown("65B on 2,048 A100")
    _, low, high = numbers(cells[5])
    assert low < numbers(cells[1])[0] < high
