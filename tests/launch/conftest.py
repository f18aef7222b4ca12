from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import Job

from launcher import process


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start_job(*args: str, **options: object) -> Job:
        jobs.append(Job(tmp_path / f"run{len(jobs)}", *args, **options))  # type: ignore[arg-type]
        return jobs[-1]

    yield start_job
    for job in jobs:
        if job.process.poll() is None:  # else its number may be that of another process by now
            process.signal_all([job.process.pid, *job.members()], signal.SIGKILL)
        job.process.wait()
