"""Metrics reach the terminal, metrics.jsonl and wandb; steps that are run again after a resume replace the old ones."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ranks import make_plan

from launcher import api, console
from launcher.cli import main
from launcher.commands import sync
from launcher.commands.invocation import Invocation
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.layout import Layout
from launcher.planner.options import TrackingOptions, TrainOptions
from launcher.planner.record import Program, RunOptions, write_plan
from launcher.run.folder import RunFolder
from launcher.run.metrics import StepMetrics, describe_split, read_new_steps, summarise_steps
from launcher.run.owner import claim, release, this_process
from launcher.run.progress import progress
from launcher.run.wandb_folders import is_unwritten, offline_runs, wandb_id
from launcher.worker.metrics.report import throughput, train_result
from launcher.worker.metrics.tracking import Terminal, Tracker, make_tracker
from launcher.worker.metrics.wandb_process import WandbProcess, arguments_of
from launcher.worker.session import Session


def test_terminal_prints_plain_lines_where_it_is_no_terminal() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream, total=10, every=4)
    for step in range(1, 11):
        terminal.log(StepMetrics(step, loss=2.5, step_s=0.25, tokens_per_s=8192.0))
    terminal.close()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/10", "4/10", "8/10", "10/10"]
    assert lines[0] == "step 1/10  loss 2.5000  8,192 tokens/s  250.0 ms/step  mfu unknown"


def test_a_program_that_does_not_say_how_many_steps_it_has_is_shown_without_a_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """train.steps is the recipe's: status and ls name no number either."""
    options = load(["tracking=none"]).run_options
    for number, (program, shown) in enumerate(
        ((None, "step 1/80 "), (Program(kind="script", target="a.py"), "step 1  loss"))
    ):
        plan = replace(make_plan(Layout(tp=1, pp=1, dp=1)), options=replace(options, program=program))
        (folder := RunFolder(tmp_path / str(number))).path.mkdir()
        write_plan(plan, folder.plan)
        tracker = make_tracker(plan, run_dir=folder.path, main=True)
        tracker.log(1, {"loss": 1.0})
        tracker.close()
        assert capsys.readouterr().out.startswith(shown)
        assert progress(folder).total_steps == (80 if program is None else None)


@pytest.mark.parametrize(
    ("columns", "shown"), [(60, "ms/step"), (80, "tokens/s"), (90, "mfu 52.3%"), (160, "grad norm")]
)
def test_a_narrow_terminal_keeps_the_count_and_whole_numbers(
    columns: int, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(screen := Screen(), total=100_000)
    numbers = {"step_s": 0.3385, "tokens_per_s": 123456.0, "mfu": 0.523}
    for step in (1, 77_777):
        terminal.log(StepMetrics(step, loss=2.5, grad_norm=7.271, lr=2e-4, **numbers))
    terminal.close()
    last = re.split(r"[\r\n]+|\x1b\[2K", screen.getvalue().rstrip())
    line = next(text for text in reversed([re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", one) for one in last]) if text.strip())
    assert line.split()[0] == "77777/100000"
    assert shown in line and "━" in line
    assert len(line) <= columns
    assert "…" not in line


def test_what_a_rank_says_is_cut_between_words_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(console, "terminal_width", lambda stream: 30)
    words = "data: 10,511,790 tokens in /somewhere/that/is/longer/than/it, 3 epochs"
    Session.say(SimpleNamespace(is_main=True), words)
    assert " ".join(said.getvalue().split()) == words
    assert [line for line in said.getvalue().splitlines() if len(line) > 30 and " " in line.strip()] == []


def test_ranks_other_than_the_main_one_write_nothing(tmp_path: Path) -> None:
    tracker = make_tracker(make_plan(Layout(tp=1, pp=1, dp=1)), run_dir=tmp_path, main=False)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert list(tmp_path.iterdir()) == []


class FullDisk:
    """A sink that fails as a full disk does."""

    def log(self, metrics: StepMetrics) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_full_disk_costs_metrics_and_not_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    tracker = Tracker([FullDisk(), Terminal(stream, total=2)])
    tracker.log(1, {"loss": 1.0})
    tracker.log(2, {"loss": 0.5})
    tracker.close()
    assert len(stream.getvalue().splitlines()) == 2
    assert capsys.readouterr().err.count("No space left") == 1


def test_where_a_step_went_is_the_median_of_each_part_in_words() -> None:
    splits = [{"data_s": 1e-3, "forward_backward_s": s, "exposed_tp_s": s / 4} for s in (0.1, 0.2, 9.0)]
    steps = [StepMetrics(i + 1, split_s=split) for i, split in enumerate(splits)]
    assert (
        describe_split(summarise_steps(steps).split_s)
        == "data 1.0 ms, forward and backward 200.0 ms, including tensor-parallel collectives 50.0 ms"
    )


def test_mfu_is_unknown_where_the_peak_is() -> None:
    plan = make_plan(Layout(tp=2, pp=2, dp=2))
    assert throughput(plan, step_s=0.5)[1] is None
    assert throughput(plan, step_s=0.5)[0] == 8 * 16 / 0.5


def test_result_of_a_run_that_had_nothing_left_to_do() -> None:
    plan = make_plan(Layout(tp=1, pp=1, dp=1))
    document = train_result(plan, [], first_step=9, stopped=False).to_dict()
    assert document["losses"] == {"first": None, "last": None, "all": []}
    assert document["resumed_after_step"] == 9
    json.dumps(document)


@pytest.mark.parametrize(("step", "lr"), [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.55), (100, 0.1), (200, 0.1)])
def test_learning_rate_warms_up_and_falls_on_a_cosine(step: int, lr: float) -> None:
    options = TrainOptions(steps=100, lr=1.0, min_lr=0.1, warmup_steps=10)
    assert options.lr_at(step) == pytest.approx(lr)


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Records of a .wandb file: 7 bytes of its own, then LevelDB's log format, in blocks of 32 KiB."""
    record, position = b"", 7
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def wandb_records(run_dir: Path, kind: str) -> Iterator[Any]:
    """What the offline run of a folder has of one of wandb's own message types."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    [file] = (run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField(kind):
            yield getattr(record, kind)


def wandb_history(run_dir: Path) -> list[dict[str, object]]:
    """The steps in the offline run of a folder."""
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row.item}
        for row in wandb_records(run_dir, "history")
    ]


@pytest.mark.slow
def test_wandb_follows_a_run_in_a_process_of_its_own_or_gets_a_short_one_by_sync(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a resume, too: the second start, a short one, has the steps of the first."""
    monkeypatch.setenv("WANDB_PROJECT", "of the run")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    folder, owner = RunFolder(tmp_path), this_process()
    alone = [f"layout.{axis}=1" for axis in ("tp", "pp", "dp")]
    plan = api.plan(["cluster=cpu", "cluster.node.num_gpus=1", *alone, "tracking.kind=wandb", "tracking.mode=offline"])
    write_plan(plan, folder.plan)
    claim(folder, owner)
    for start, last in ((1, 4), (3, 5)):  # the second begins after the checkpoint of step 2
        tracker = make_tracker(plan, run_dir=tmp_path, main=True)
        if start == 1:
            tracker._sinks[-1] = WandbProcess(tmp_path, timeout_s=240, offline=True, offline_after_s=0)
        for step in range(start, last + 1):
            began = time.process_time()
            tracker.log(step, {"loss": 1.0 / step, "lr": float(start)})
            assert time.process_time() - began < 0.6  # an import of wandb takes 0.9 s, a collection of garbage 0.2
        assert "wandb" not in sys.modules or start > 1
        tracker.close()
        said = capsys.readouterr().err
        assert f"launcher sync {tmp_path}" in said
        assert ("wandb has no run yet, for this one was short" in said) == (start > 1)
        assert [path.name.rpartition("-")[2] for path in offline_runs(tmp_path)] == [wandb_id(tmp_path)]
    with pytest.raises(InputError, match="goes on: sync it when it has ended"):
        sync.run(Invocation((str(tmp_path),), ()))
    release(folder, owner, ended="done")
    monkeypatch.delenv("WANDB_PROJECT")
    assert main(["sync", str(tmp_path), "dry_run=true"]) == 0
    assert capsys.readouterr().out.split()[3:5] == [sync.WRITER, str(tmp_path)]
    [old] = offline_runs(tmp_path)
    uploads: list[list[str]] = []
    monkeypatch.setattr(sync, "_upload", lambda argv: uploads.append(argv) or 0)
    assert main(["sync", str(tmp_path)]) == 0
    newest, older = offline_runs(tmp_path)
    assert (uploads, older) == ([[sys.executable, "-m", "wandb", "sync", str(newest)]], old)
    assert not is_unwritten(folder)
    shutil.rmtree(old)
    history = wandb_history(tmp_path)
    assert [(row["_step"], row["loss"], row["lr"]) for row in history] == [
        *((1, 1.0, 1.0), (2, 0.5, 1.0)),
        *((step, 1.0 / step, 3.0) for step in (3, 4, 5)),
    ]
    assert b"of the run" in next(newest.glob("run-*.wandb")).read_bytes()
    [report] = wandb_records(tmp_path, "artifact")
    [page] = report.manifest.contents
    assert (report.type, page.path, page.local_path) == ("report", "report.html", str(folder.report))
    assert page.size == folder.report.stat().st_size and folder.report.read_text().startswith("<!doctype html>")
    assert "k" * 40 not in folder.wandb_offline.read_text()


def test_wandbs_process_has_a_low_priority_only_while_steps_run() -> None:
    """At its end rank 0 waits for it: with three busy loops on its core both ends of a run took 106 s."""
    code = (
        "import os; from launcher.worker.metrics.wandb_process import low_priority\n"
        "def now(): return os.getpriority(os.PRIO_PROCESS, 0)\n"
        "before = now()\n"
        "with low_priority(): during = now() - before\n"
        "print(during, now() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    during, after = done.stdout.split()
    assert int(during) == min(10, 19 - os.getpriority(os.PRIO_PROCESS, 0))
    assert after in ("0", during)  # which users may raise it again, their limits say


@pytest.mark.slow
def test_wandb_ends_with_a_rank_that_is_killed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    plan = make_plan(
        Layout(tp=1, pp=1, dp=1), options=RunOptions(tracking=TrackingOptions(kind="wandb", mode="offline"))
    )
    write_plan(plan, folder.plan)
    folder.metrics.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    follower = subprocess.run(
        [sys.executable, "-P", "-m", "launcher.worker.metrics.wandb_process", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert follower.returncode == 0, follower.stderr
    assert [row["loss"] for row in wandb_history(tmp_path)] == [0.5]
    assert not list(wandb_records(tmp_path, "artifact"))


@pytest.mark.slow
def test_wandb_that_fails_costs_a_message_and_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker([WandbProcess(tmp_path, timeout_s=240, offline=False)])
    tracker.log(1, {"loss": 1.0})  # there is no plan in the folder
    tracker.close()
    said = capsys.readouterr().err
    assert said.count("wandb failed (") == 1
    assert str(RunFolder(tmp_path).metrics) in said


@pytest.mark.parametrize(
    ("variables", "netrc", "says"),
    [
        ({}, None, "wandb is off"),
        ({}, "machine example.org\n  login user\n  password x\n", "wandb is off"),
        ({}, "machine api.wandb.ai\n  login user\n  password x\n", "wandb is on, by the login in "),
        ({"WANDB_API_KEY": "k" * 40}, None, "wandb is on, by the login in WANDB_API_KEY"),
        ({"WANDB_BASE_URL": "https://wandb.example.org:8080"}, "machine wandb.example.org\n", "wandb is on"),
        ({"WANDB_BASE_URL": "https://wandb.example.org"}, "machine api.wandb.ai\n", "wandb is off"),
        ({"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "disabled"}, None, ""),
        ({"WANDB_MODE": "offline"}, None, ""),
    ],
)
def test_wandb_is_on_where_the_user_is_logged_in_or_asked_for_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    netrc: str | None,
    says: str,
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DISABLED", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        (tmp_path / ".netrc").write_text(netrc)
    plan = make_plan(Layout(tp=1, pp=1, dp=1), options=RunOptions(tracking=TrackingOptions(kind="auto")))
    tracker = make_tracker(plan, run_dir=tmp_path, main=True)
    said = capsys.readouterr().err
    assert says in said if says else "wandb" not in said
    wanted = "is on" in says or variables == {"WANDB_MODE": "offline"}
    assert any(isinstance(sink, WandbProcess) for sink in tracker._sinks) is wanted
    assert "k" * 40 not in said


def test_lines_of_metrics_are_read_once_when_they_are_whole(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_new_steps(file, 0) == ([], 0)
    file.write_text('{"step": 1, "loss": 0.5}\nnonsense\n{"step": 2')
    steps, position = read_new_steps(file, 0)
    assert [step.step for step in steps] == [1]
    with file.open("a") as more:
        more.write(', "loss": 0.25}\n')
    assert [step.loss for step in read_new_steps(file, position)[0]] == [0.25]


def test_a_run_is_tracked_by_wandb_only_where_somebody_is_logged_in() -> None:
    assert load([]).options.tracking.kind == "auto"


def test_wandbs_variables_count_where_no_key_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"WANDB_NAME": "n", "WANDB_PROJECT": "p", "WANDB_DIR": "/d", "WANDB_JOB_TYPE": "j", "WANDB_RUN_ID": "i"}
    for name in variables:
        monkeypatch.delenv(name, raising=False)
    given = TrackingOptions(name="mine", project="ours", job_type="probe", tags=("a", "b"), group="g")
    plans = [make_plan(Layout(tp=1, pp=1, dp=1), options=RunOptions(tracking=t)) for t in (TrackingOptions(), given)]
    usual = arguments_of(plans[0], tmp_path)
    assert (usual["name"], usual["dir"], usual["job_type"]) == (tmp_path.name, str(tmp_path), "gpt")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    left_to_wandb, by_key = (arguments_of(plan, tmp_path) for plan in plans)
    assert [left_to_wandb[name] for name in ("name", "project", "dir", "job_type")] == [None] * 4
    assert left_to_wandb["id"] == "i"
    assert [by_key[name] for name in ("name", "project", "job_type")] == ["mine", "ours", "probe"]
    assert (by_key["tags"], by_key["group"]) == (["a", "b"], "g")
