"""Step times against the two published tables, with the year of their software and at its default."""

from __future__ import annotations

import statistics

import pytest
from published import table

NARAYANAN, KORTHIKANTI = "narayanan2021_table1.csv", "korthikanti2022_table5.csv"


@pytest.mark.parametrize(
    ("file", "year", "bound"),
    [(NARAYANAN, 2021, 0.03), (NARAYANAN, None, 0.065), (KORTHIKANTI, 2022, 0.036), (KORTHIKANTI, None, 0.036)],
)
def test_mean_error_of_a_published_table_stays_bounded(file: str, year: int | None, bound: float) -> None:
    errors = [row.error(year=year) for row in table(file)]
    assert statistics.mean(map(abs, errors)) <= bound
    assert max(map(abs, errors)) <= 0.10


def test_every_published_run_fits_the_memory_it_ran_in() -> None:
    for file in (NARAYANAN, KORTHIKANTI):
        for row in table(file):
            assert row.estimate(year=2022).fits, row.name


def test_selective_recomputation_is_faster_than_full_as_measured() -> None:
    rows = {(row.name, row.layout.recompute): row for row in table(KORTHIKANTI)}
    for name in {name for name, _ in rows}:
        full, selective = rows[name, "full"], rows[name, "selective"]
        measured = full.seconds / selective.seconds
        estimated = full.estimate(year=2022).step_time_s / selective.estimate(year=2022).step_time_s
        assert estimated == pytest.approx(measured, rel=0.08), name
