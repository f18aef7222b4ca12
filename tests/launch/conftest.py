from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import Job, started_jobs


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    with started_jobs(tmp_path) as start_job:
        yield start_job
