"""Which runs there are, which is the last one, and how far each is: from their folders alone."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from shapes import job

from launcher.cli import main
from launcher.errors import InputError
from launcher.faststart import library_load
from launcher.layout import Layout
from launcher.planner import Plan, write_plan
from launcher.planner.options import TrainOptions
from launcher.planner.record import Program, RunOptions
from launcher.run.folder import RunFolder, create_run_folder
from launcher.run.ledger import PHASES, Ledger
from launcher.run.listing import newest_run, runs_in
from launcher.run.metrics import MetricsFile, StepMetrics
from launcher.run.owner import Owner, claim, hand_to_job, release, this_process
from launcher.run.progress import NEXT, planned_steps, progress


def made(path: Path, *, since: float, ended: str = "") -> tuple[RunFolder, Owner]:
    folder, owner = create_run_folder(path), replace(this_process(), since=since)
    claim(folder, owner)
    if ended:
        release(folder, owner, ended=ended)
    return folder, owner


def with_plan(folder: RunFolder, options: RunOptions) -> None:
    write_plan(Plan(job(), Layout(tp=1, pp=1, dp=8), {}, (), options), folder.plan)


def test_runs_are_listed_newest_first_and_last_is_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no run in"):
        newest_run(Path())
    made(Path("runs/old"), since=1e9, ended="done")
    made(Path("own name"), since=3e9)
    made(Path("runs/mid"), since=2e9, ended="failed")
    (tmp_path / "runs" / "other").mkdir()
    Path("runs/broken").mkdir()
    Path("runs/broken/owner.json").write_text("[")
    assert [str(folder.path) for folder, _ in runs_in(Path())] == ["own name", "runs/mid", "runs/old"]
    assert newest_run(Path()) == Path("own name")


def test_ls_shows_step_state_and_job_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.commands.ls._jobs", lambda: {"17": ("PENDING", tmp_path / "far")})
    assert main(["ls"]) == 0
    assert capsys.readouterr().out == "no run in this folder, nor in runs/ here\n"
    done, _ = made(Path("runs/done"), since=1e9, ended="done")
    MetricsFile(done.metrics).log(StepMetrics(7, loss=2.5, step_s=1.0))
    far, owner = made(tmp_path / "far", since=2e9)
    hand_to_job(far, owner, "17")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made(Path("runs/done"), since=1e9, ended="done")
    assert main(["ls", "output=json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert [run["state"] for run in found] == ["PENDING", "done"]
    assert (found[0]["run"], found[0]["where"]) == (str(tmp_path / "far"), "job 17")
    monkeypatch.chdir(tmp_path)
    assert main(["ls", "top=1"]) == 0
    text = capsys.readouterr()
    assert "PENDING" in text.out and "1 older runs are not shown" in text.err
    assert main(["status", "last"]) in (0, 2)  # of a job that no Slurm here knows
    capsys.readouterr()
    assert main(["ls", "top=x"]) == 2


def test_a_dry_run_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.commands.ls._jobs", dict)
    monkeypatch.setattr(library_load, "possible", lambda: False)  # it forks, and this process would end
    assert main(["submit", "cluster=dgx_a100_80g", "model=gpt3_1b3", "dry_run=true"]) == 0
    assert len(list(Path("runs").iterdir())) == 1  # what the printed command reads
    assert main(["run", "dry_run=true"]) == 0
    assert len(list(Path("runs").iterdir())) == 1
    capsys.readouterr()
    (prepared,) = Path("runs").iterdir()
    said = f"{prepared}, prepared by dry_run=true, was not started"
    assert main(["ls"]) == 0
    assert capsys.readouterr().out == f"no run in this folder, nor in runs/ here; {said}\n"
    assert main(["status", "last"]) == 2
    assert f"{said}: name it" in capsys.readouterr().err
    assert main(["report", str(prepared)]) == 0


def test_progress_knows_the_steps_of_a_recipe_and_what_is_left(tmp_path: Path) -> None:
    folder = create_run_folder(tmp_path / "run")
    with_plan(folder, RunOptions(train=TrainOptions(steps=50)))
    assert planned_steps(folder) == 50
    metrics = MetricsFile(folder.metrics)
    for step in range(1, 11):
        metrics.log(StepMetrics(step, loss=3.0, step_s=0.5, tokens_per_s=1000.0))
    reached = progress(folder)
    assert (reached.step, reached.total_steps, reached.left_s, reached.tokens_per_s) == (10, 50, 20.0, 1000.0)
    assert str(reached) == "step 10 of 50, loss 3.0000, 500.0 ms a step, 1,000 tokens/s, 20.0 s left"
    other = create_run_folder(tmp_path / "script")
    with_plan(other, RunOptions(program=Program(kind="script", target="x.py")))
    assert planned_steps(other) is None
    assert str(progress(other)) == ""


def test_a_start_says_where_it_is_until_the_first_step(tmp_path: Path) -> None:
    folder, _ = made(tmp_path / "run", since=time.time() - 1)
    ledger = Ledger(folder.ledger, node=0, began=time.monotonic())
    for phase in PHASES[:-1]:
        if phase == "met":
            ledger.begin()
        ledger.note(phase)
        reached = progress(folder)
        assert (reached.phase, reached.phase_s is not None) == (phase, True)
        assert str(reached).startswith(f"starting: {NEXT[phase]}")
    assert set(NEXT) == set(PHASES) - {"first_step"}
