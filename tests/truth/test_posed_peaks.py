"""A stage's estimated memory is the true peak of our own engine, within 10 %: as wide as 7B to 175B, not as deep."""

from __future__ import annotations

import gc
import multiprocessing
import warnings
from collections.abc import Sequence

import pytest
from posed import CASES, shallow, truth_and_estimate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("posed"),
    pytest.mark.timeout(1500),
]  # about 45 s of CPU time
TOLERANCE = 0.10
WORKERS = 2


def measure(numbers: Sequence[int]) -> list[tuple[int, dict[str, float]]]:
    warnings.simplefilter("ignore")  # of torch, on private use of its own classes; the output is the parent's
    return [(number, truth_and_estimate(shallow(CASES[number]))) for number in numbers]


@pytest.fixture(scope="module")
def found() -> dict[int, dict[str, float]]:
    """Every case, in forked processes: a process that has posed has process groups of a world that is not there."""
    shares = [range(first, len(CASES), WORKERS) for first in range(WORKERS)]
    gc.freeze()  # the children must not collect what this process has left
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        gc.unfreeze()
        return dict(pair for share in pool.map(measure, shares, chunksize=1) for pair in share)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_estimate_is_the_peak_of_live_bytes(number: int, found: dict[int, dict[str, float]]) -> None:
    row = found[number]
    assert row["ratio"] == pytest.approx(1.0, abs=TOLERANCE), f"GiB: {row}"


def test_cases_span_what_the_estimate_must_know() -> None:
    layouts = [case.layout for case in CASES]
    assert {layout.zero_stage for layout in layouts} == {0, 1, 2, 3}
    assert {layout.recompute for layout in layouts} == {"none", "selective", "full"}
    assert {layout.schedule for layout in layouts if layout.pp > 1} == {"1f1b", "gpipe", "interleaved", "zb_h1"}
    assert max(layout.tp for layout in layouts) == 8 and max(layout.pp for layout in layouts) == 16
    assert len(CASES) >= 12
