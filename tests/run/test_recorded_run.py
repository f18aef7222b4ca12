"""The real recipe for five steps, and then every reader of its run folder: nothing here was written by hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest
from report.trace_format import assert_named_and_nested, events_of

from launcher.planner import read_plan
from launcher.report.trace import FIRST_TRACK
from launcher.run.folder import RunFolder
from launcher.run.metrics import WARMUP_STEPS, read_steps, summarise_steps
from launcher.run.result import read_train_result
from launcher.units import format_seconds

pytestmark = pytest.mark.slow
SMALL = ["cluster.node.num_gpus=2", "layout.tp=1", "layout.pp=2", "layout.dp=1", "model.layers=2", "model.seq_len=32"]


def launcher(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher.cli", *words]
    return preloaded.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, subprocess.CompletedProcess[str]]:
    home = tmp_path_factory.mktemp("recorded")
    done = launcher("run", "train.steps=5", "tracking=none", "run_dir=five", *SMALL, cwd=home)
    assert done.returncode == 0, done.stderr
    return RunFolder(home / "five"), done


def test_the_report_shows_what_was_measured(ran: tuple[RunFolder, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = ran
    with folder.metrics.open("a") as file:
        file.write('{"step": 6, "lo')  # as of a run that was killed
    done = launcher("report", folder.path.name, cwd=folder.path.parent)
    assert done.stdout.strip() == str(Path(folder.path.name) / folder.report.name)
    page = folder.report.read_text()
    measured = summarise_steps(read_steps(folder.metrics)).step_s
    assert measured is not None
    assert "not measured" not in page
    assert format_seconds(measured) in page
    assert '"id":"curve-loss","x":"step","xs":[1,2,3,4,5]' in page


def test_the_trace_has_the_predicted_and_the_recorded_schedule_side_by_side(
    ran: tuple[RunFolder, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = ran
    found = json.loads(launcher("report", "five", "trace=t.json", "output=json", cwd=folder.path.parent).stdout)
    text = (folder.path.parent / found["file"]).read_text()
    events = events_of(text)
    assert_named_and_nested(events)
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert [names[pid].split(":")[0] for pid in sorted(names)] == ["predicted", "measured", "measured"]
    plan, steps = read_plan(folder.plan), {step.step: step for step in read_steps(folder.metrics)}
    micro_batches = plan.layout.num_micro_batches(plan.job.training.global_batch)
    wanted = sorted((kind, stage, i) for kind in "FB" for stage in range(2) for i in range(micro_batches))
    boxes = [e for e in events if e["ph"] == "X"]
    for pid in names:  # the prediction, and the steps 4 and 5
        mine = [e for e in boxes if e["pid"] == pid]
        passes = [(e["cat"], e["args"]["stage"], e["args"]["micro_batch"]) for e in mine if e["cat"] in "FB"]
        assert sorted(passes) == wanted
        measured = steps.get(pid - 1)
        if measured is not None and measured.step_s is not None:
            first = [
                e for e in mine if e["tid"] == FIRST_TRACK
            ]  # by the clock of the machine, on which it may begin second
            took_us = max(e["ts"] + e["dur"] for e in first) - min(e["ts"] for e in first)
            assert 0.5 * measured.step_s < took_us / 1e6 <= measured.step_s
    for step in (4, 5):  # a stage's forward follows that of the stage before it, by the clock of the machine
        ends = {
            e["tid"] - FIRST_TRACK: e["ts"] + e["dur"]
            for e in boxes
            if e["pid"] == step + 1 and e["name"] == "forward 0"
        }
        assert ends[0] < ends[1]


def test_status_shows_the_last_step_and_the_measured_time(
    ran: tuple[RunFolder, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = ran
    steps = read_steps(folder.metrics)
    found = json.loads(launcher("status", folder.path.name, "output=json", cwd=folder.path.parent).stdout)
    assert (found["step"], found["loss"]) == (5, steps[-1].loss)
    assert found["step_time_s"] == summarise_steps(steps).step_s
    assert re.search(r"step 5 of 5, loss \d", launcher("status", folder.path.name, cwd=folder.path.parent).stdout)


def test_compare_reads_the_measured_time_and_finds_a_run_the_same_as_itself(
    ran: tuple[RunFolder, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = ran
    done = launcher("compare", "five", "five", "fail_over=1%", "output=json", cwd=folder.path.parent)
    assert done.returncode == 0, done.stderr
    step = next(change for change in json.loads(done.stdout)["changes"] if change["name"] == "step time")
    measured = summarise_steps(read_steps(folder.metrics)).step_s
    assert measured is not None
    assert (step["a"], step["worse"]) == (format_seconds(measured), 0.0)


def test_the_last_line_is_the_result_in_short_and_names_the_file_that_has_the_rest(
    ran: tuple[RunFolder, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = ran
    short = json.loads(done.stdout.splitlines()[-1])
    assert set(short) == {
        *("recipe", "engine", "layout", "losses", "predicted_step_time_s", "measured_step_time_s", "result"),
    }
    assert short["result"] == str(folder.result)
    result, steps = read_train_result(folder.result), read_steps(folder.metrics)
    assert result is not None
    assert list(result.losses) == [step.loss for step in steps]
    assert short["losses"] == {"first": steps[0].loss, "last": steps[-1].loss}
    assert short["measured_step_time_s"] == result.measured_step_time_s == summarise_steps(steps).step_s
    assert result.measured_split_s == summarise_steps(steps).split_s
    assert len(steps) > WARMUP_STEPS


def test_a_finished_run_that_is_started_again_keeps_its_result(tmp_path: Path) -> None:
    words = ["run", "train.steps=2", "train.checkpoint_every=1", "tracking=none", "run_dir=two", *SMALL]
    first = launcher(*words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    file = RunFolder(tmp_path / "two").result
    before = file.read_bytes()
    again = launcher(*words, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert file.read_bytes() == before
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert "nothing was left to do after step 2" in again.stderr


def test_a_run_takes_the_plan_of_its_folder_and_never_changes_it(tmp_path: Path) -> None:
    shape = ["cluster.node.num_gpus=2", "model.layers=2", "model.seq_len=32"]
    pinned = ["layout.tp=1", "layout.pp=1", "layout.dp=2", "layout.zero_stage=2"]  # not what the search would choose
    assert launcher("plan", *shape, *pinned, "run_dir=x", cwd=tmp_path).returncode == 0
    folder = RunFolder(tmp_path / "x")
    before = folder.plan.read_bytes()
    done = launcher("run", "run_dir=x", "train.steps=2", "tracking=none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["layout"]["zero_stage"] == 2
    refused = launcher("run", "run_dir=x", "layout.zero_stage=0", "model=gpt3_125m", cwd=tmp_path)
    assert refused.returncode == 2
    assert "layout.zero_stage=0 contradicts the plan, which has 2" in refused.stderr
    assert "model=gpt3_125m differs" in refused.stderr
    assert folder.plan.read_bytes() == before
    assert read_plan(folder.present_plan).options.train.steps == 2


def test_a_saved_plan_is_run_as_it_is(tmp_path: Path) -> None:
    shape = ["cluster.node.num_gpus=2", "model.layers=2", "model.seq_len=32", "train.steps=1", "tracking=none"]
    pinned = ["layout.tp=1", "layout.pp=1", "layout.dp=2", "layout.micro_batch=1"]
    assert launcher("plan", *shape, *pinned, "save=best.json", cwd=tmp_path).returncode == 0
    before = (tmp_path / "best.json").read_bytes()
    done = launcher("run", "plan=best.json", "run_dir=y", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["layout"]["micro_batch"] == 1
    assert (tmp_path / "best.json").read_bytes() == before
    assert read_plan(RunFolder(tmp_path / "y").plan) == read_plan(tmp_path / "best.json")


def test_a_checkpoint_of_another_job_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    words = ["train.checkpoint_every=1", "train.steps=1", "tracking=none", "run_dir=z", *SMALL]
    assert launcher("run", *words, cwd=tmp_path).returncode == 0
    folder = RunFolder(tmp_path / "z")
    files = (folder.plan, folder.config, folder.owner, folder.launch, folder.ledger, folder.result)
    before = [file.read_bytes() for file in files]
    refused = launcher("run", "run_dir=z", "train.seed=5", "train.steps=2", cwd=tmp_path)
    assert refused.returncode == 2
    assert "was saved with seed=1234, this run has 5" in refused.stderr
    assert [file.read_bytes() for file in files] == before
    assert not folder.plan_of_start.exists()
