"""A sample of the faults that come through Slurm; slurm_faults.py runs as many as wanted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_faults import strike_all
from slurm_lab import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def slurm(cluster: Slurm, tmp_path: Path) -> Iterator[Slurm]:
    yield Slurm(cluster.folder, tmp_path)
    cluster.clear()


def test_a_job_that_slurm_struck_in_a_save_ends_whole_without_a_step_lost(slurm: Slurm) -> None:
    summary = strike_all(slurm, ["requeue in the save"], random.Random(1))
    assert summary.passed, (summary.to_dict(), summary.faults)
