"""The Python API: a job answers, and its plan is saved, read, exported and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

import launcher
from launcher import InputError, Job, LauncherError, NoLayoutFits, export_plan, load_plan, report_plan, save_plan

WORDS = ["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64"]


@pytest.fixture(scope="module")
def job() -> Job:
    return Job.from_overrides(WORDS)


def test_a_job_says_why_not_and_compares(job: Job) -> None:
    assert "slower" in job.why_not("tp=8")
    with pytest.raises(InputError, match="not a layout key"):
        job.why_not("foo=8")
    rows = job.compare(job.with_("cluster=dgx_a100_40g"), tokens=1e9).rows
    assert [row.cluster.name for row in rows] == ["dgx_a100_80g", "dgx_a100_40g"]
    assert all(row.days for row in rows)


def test_a_plan_is_saved_read_exported_and_shown(job: Job, tmp_path: Path) -> None:
    plan = job.plan()
    save_plan(plan, tmp_path / "best.json")
    assert load_plan(tmp_path / "best.json") == plan
    assert "torchrun" in "".join(export_plan(plan, to="torchrun").values())
    with pytest.raises(InputError, match="export"):
        export_plan(plan, to="nowhere")
    assert report_plan(plan).startswith("<!doctype html>")


def test_errors_are_the_packages_own() -> None:
    with pytest.raises(NoLayoutFits):
        Job.from_overrides(["cluster=fly_l40s", "model=gpt3_175b"]).plan()
    assert issubclass(NoLayoutFits, LauncherError)
    assert [name for name in launcher.__all__ if getattr(launcher, name).__doc__ is None] == []


def test_a_job_is_shown_by_what_makes_it(job: Job) -> None:
    assert repr(job) == f"Job.from_overrides({WORDS})"
