"""The Python API: a job answers, and its plan is saved, read, exported and shown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import launcher
from launcher import InputError, Job, LauncherError, NoLayoutFits, Plan

WORDS = ["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64"]


@pytest.fixture(scope="module")
def job() -> Job:
    return Job.from_overrides(WORDS)


def test_a_job_says_why_not_and_compares(job: Job) -> None:
    assert "slower" in job.why_not("tp=8")
    with pytest.raises(InputError, match="not a layout key"):
        job.why_not("foo=8")
    assert job.with_("layout.tp=3").compare().rows[0].note
    rows = job.compare(job.with_("cluster=dgx_a100_40g"), tokens=1e9).rows
    assert [row.cluster.name for row in rows] == ["dgx_a100_80g", "dgx_a100_40g"]
    assert all(row.days for row in rows)


def test_a_plan_is_saved_read_exported_and_shown(job: Job, tmp_path: Path) -> None:
    plan = job.plan()
    plan.save(tmp_path / "best.json")
    read = Plan.load(tmp_path / "best.json")
    assert read == plan and isinstance(read, Plan)
    export = read.export(to="torchrun", out=tmp_path / "out")
    assert "torchrun" in export.files["start.sh"]
    assert Plan.load(tmp_path / "out") == plan and (tmp_path / "out" / "README.md").exists()
    assert read.report().startswith("<!doctype html>")


def test_an_export_says_what_is_lost_and_refuses_what_no_file_would_have(job: Job, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"wall_clock_breakdown": true}')
    deepspeed = job.with_("train.engine=deepspeed", f"train.ds_config={tmp_path}/ds.json", "layout.pp=1").plan()
    assert "wall_clock_breakdown" in deepspeed.export(to="deepspeed").files["ds_config.json"]
    with pytest.raises(InputError, match="in none of the files"):
        deepspeed.export(to="torchrun")
    fp8 = ("cluster=dgx_h100", "train.gemm_dtype=fp8", "stack=torchtitan")
    assert any("fp8" in line for line in job.with_(*fp8).plan().export(to="torchrun").missing)


def test_errors_are_the_packages_own() -> None:
    with pytest.raises(NoLayoutFits):
        Job.from_overrides(["cluster=fly_l40s", "model=gpt3_175b"]).plan()
    assert issubclass(NoLayoutFits, LauncherError)
    assert [name for name in launcher.__all__ if getattr(launcher, name).__doc__ is None] == []


def test_a_job_is_shown_by_what_makes_it_and_what_it_answers_in_a_line(job: Job) -> None:
    assert repr(job) == f"Job.from_overrides({WORDS})"
    found, one = job.search(top=2), job.with_("layout.tp=2")
    assert repr(one.estimate()) == "<Estimate 1.2 s a step, 14.1 GiB of 79.3 GiB a GPU>"
    assert "does not fit" in repr(one.with_("layout.dp=4", "model=gpt3_175b", "layout.micro_batch=1").estimate())
    assert repr(job.plan()).startswith("<Plan gpt3_1b3 on dgx_a100_80g: tp1 pp1 dp8 mb")
    plan = job.plan()
    for answer in (found, found.best, plan, plan.export(to="torchrun"), job.compare(tokens=1e9), job.compare().rows[0]):
        assert len(repr(answer)) < 250 and "\n" not in repr(answer)


PUBLIC = {name: getattr(launcher, name) for name in ("estimate", "plan")}
PUBLIC |= {
    f"{kind}.{name}": value for kind, owner in (("Job", Job), ("Plan", Plan)) for name, value in vars(owner).items()
}
PUBLIC = {name: getattr(value, "__func__", value) for name, value in PUBLIC.items() if "._" not in name}
PUBLIC = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
CANNOT_FAIL = {"Plan.of", "Plan.report", "Job.compare"}


def test_the_package_has_what_it_names() -> None:
    assert {name for name in dir(launcher) if not name.startswith("_")} >= set(launcher.__all__)
    assert {"Job.plan", "Plan.save", "Plan.load", "Plan.export", "Plan.report"} <= set(PUBLIC)
    assert not hasattr(launcher, "save_plan")


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_function_is_typed_and_says_what_goes_wrong(name: str) -> None:
    value = PUBLIC[name]
    parameters = [one for one in inspect.signature(value).parameters.values() if one.name not in ("self", "cls")]
    assert all(one.annotation is not inspect.Parameter.empty for one in parameters)
    assert "return" in value.__annotations__
    said = re.findall(r"(?:InputError|NoLayoutFits|OSError)", value.__doc__)
    assert ("aises" in value.__doc__ and said != []) or name in CANNOT_FAIL


@pytest.mark.parametrize(("call", "error", "name"), [
    (lambda job, folder: Job.from_overrides(["model=none"]), InputError, "Job.from_overrides"),
    (lambda job, folder: job.with_("layout.tpp=2"), InputError, "Job.with_"),
    (lambda job, folder: job.with_("layout.tp=16").estimate(), InputError, "Job.estimate"),
    (lambda job, folder: job.with_("layout.tp=3").search(), InputError, "Job.search"),
    (lambda job, folder: job.with_("model=gpt3_175b").search(), NoLayoutFits, "Job.search"),
    (lambda job, folder: job.with_("model=gpt3_175b").why_not("tp=8"), NoLayoutFits, "Job.why_not"),
    (lambda job, folder: job.with_("layout.tp=3").plan(), InputError, "Job.plan"),
    (lambda job, folder: launcher.plan(["model=gpt3_175b", "cluster=fly_l40s"]), NoLayoutFits, "plan"),
    (lambda job, folder: launcher.estimate(["layout.tp=3"]), InputError, "estimate"),
    (lambda job, folder: Plan.load(folder / "none.json"), InputError, "Plan.load"),
    (lambda job, folder: job.plan().save(folder / "no" / "folder" / "x.json"), OSError, "Plan.save"),
    (lambda job, folder: job.plan().export(to="nowhere"), InputError, "Plan.export"),
    (lambda job, folder: job.with_("layout.zero_stage=1").plan().export(to="hostfile"), InputError, "Plan.export"),
    (lambda job, folder: job.plan().export(to="torchrun", out=__file__), InputError, "Plan.export"),
])  # fmt: skip
def test_what_goes_wrong_is_the_error_that_its_docstring_names(
    call: Callable[[Job, Path], object], error: type[Exception], name: str, job: Job, tmp_path: Path
) -> None:
    with pytest.raises(error):
        call(job, tmp_path)
    assert error.__name__ in PUBLIC[name].__doc__


@pytest.mark.parametrize("word", ["plan=best.json", "why_not=tp=8", "sizes=8,16", "save=x.json", "run_dir=x", "days=3"])
def test_a_key_of_the_commands_is_refused_in_a_job(word: str, job: Job) -> None:
    """`plan(["plan=best.json"])` searched as if no plan had been given."""
    for ask in (launcher.plan, launcher.estimate, Job.from_overrides):
        with pytest.raises(InputError, match=f"{word}: a job has no such key"):
            ask([word])
    with pytest.raises(InputError, match=f"{word}: a job has no such key"):
        job.with_(word)
