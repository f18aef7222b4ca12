"""Which ports an expression of a batch script can give."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.lint.ports import port_range

VARIABLES = {"BASE": "30000", "SELF": "$((SELF + 1))", "ID": "$SLURM_JOB_ID"}
RANGES = {
    "29500": (29500, 29500),
    "$((10000 + SLURM_JOB_ID % 20000))": (10000, 29999),
    '"$(( 10000 + $SLURM_JOBID % 20000 ))"': (10000, 29999),
    "$[BASE + 2 * 7]": (30014, 30014),
    "$((${BASE} + ${SLURM_JOB_ID: -4}))": (30000, 39999),
    "$(expr 20000 + $(echo -n $SLURM_JOBID | tail -c 4))": (20000, 29999),
    "`expr 1024 + $ID % 100`": (1024, 1123),
    "${MASTER_PORT:-29500}": (29500, 29500),
    "$((1024 + (RANDOM % 100) * 2))": (1024, 1222),
    "$(shuf -i 20000-65000 -n 1)": (20000, 65000),
    "$((SLURM_JOB_ID))": (1, 99_999_999),
}
UNKNOWN = ["$PORT", "$((SELF))", "$(python -c 'print(1)')", "$((1 / 0))", "$((", "$((1 +))", "2950x", "", "1" * 300]


@pytest.mark.parametrize("value", RANGES)
def test_the_bounds_of_an_expression_are_found(value: str) -> None:
    assert port_range(value, VARIABLES) == RANGES[value]


@pytest.mark.parametrize("value", UNKNOWN)
def test_what_cannot_be_known_is_unknown(value: str) -> None:
    assert port_range(value, VARIABLES) is None


@given(st.text(st.sampled_from("$(){}[]`0123456789+-*/% BASEID:"), max_size=60))
def test_any_text_gets_an_answer(text: str) -> None:
    found = port_range(text, VARIABLES)
    assert found is None or len(found) == 2


@given(
    st.lists(st.tuples(st.sampled_from("+*%"), st.integers(1, 999)), max_size=4),
    st.integers(1, 99_999_999),
)
def test_what_bash_computes_lies_within_the_bounds(terms: list[tuple[str, int]], job_id: int) -> None:
    value = "$((SLURM_JOB_ID" + "".join(f" {sign} {number}" for sign, number in terms) + "))"
    found = port_range(value, {})
    said = subprocess.run(["bash", "-c", f"SLURM_JOB_ID={job_id}; echo {value}"], capture_output=True, text=True)
    assert found is not None
    assert found[0] <= int(said.stdout) <= found[1]
