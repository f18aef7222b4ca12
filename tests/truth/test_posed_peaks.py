"""A stage's estimated memory is the true peak of our own engine, within 10 %: as wide as 7B to 175B, not as deep."""

from __future__ import annotations

import gc
import multiprocessing
import warnings
from collections.abc import Sequence

import pytest
from posed import CASES, Case, shallow, truth_and_estimate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("posed"),
    pytest.mark.timeout(1500),
]
TOLERANCE = 0.10


def measure(cases: Sequence[Case]) -> list[dict[str, float]]:
    warnings.simplefilter("ignore")  # of torch, on private use of its own classes; the output is the parent's
    return [truth_and_estimate(shallow(case)) for case in cases]


@pytest.fixture(scope="module")
def found() -> list[dict[str, float]]:
    """Every case, in a forked process: one that has posed has process groups of a world that is not there."""
    gc.freeze()  # the child must not collect what this process has left
    with multiprocessing.get_context("fork").Pool(1) as pool:
        gc.unfreeze()
        return pool.apply(measure, [CASES])


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_estimate_is_the_peak_of_live_bytes(number: int, found: list[dict[str, float]]) -> None:
    row = found[number]
    assert row["ratio"] == pytest.approx(1.0, abs=TOLERANCE), f"GiB: {row}"


def test_cases_span_what_the_estimate_must_know() -> None:
    layouts = [case.layout for case in CASES]
    assert {layout.zero_stage for layout in layouts} == {0, 1, 2, 3}
    assert {layout.recompute for layout in layouts} == {"none", "selective", "full"}
    assert {layout.schedule for layout in layouts if layout.pp > 1} == {"1f1b", "gpipe", "interleaved", "zb_h1"}
    assert max(layout.tp for layout in layouts) == 8 and max(layout.pp for layout in layouts) == 16
    assert len(CASES) >= 12
