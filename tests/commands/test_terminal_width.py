"""At a terminal every line fits and no word is cut; colours are for meaning, and go where nobody wants them."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import time
from pathlib import Path

import pytest

from launcher import console
from launcher.cli import main
from launcher.commands import sweep_here, tune
from launcher.planner import read_plan
from launcher.planner.tuning import Trial
from launcher.report.table import LEFT, RIGHT, draw
from launcher.run.folder import create_run_folder
from launcher.run.ledger import PHASES, Ledger
from launcher.run.metrics import MetricsFile, StepMetrics
from launcher.run.owner import claim, release, this_process
from tests.commands.terminals import at_terminal

ROOT = Path(__file__).resolve().parents[2]
BIG = ["cluster=dgx_a100_80g", "cluster.num_nodes=16", "train.global_batch=256", "top=5"]
COMMANDS = {
    "plan": ["plan", *BIG, "model=gpt3_175b"],
    "plan of experts": [
        *("plan", *BIG, "cluster.num_nodes=4", "model=mixtral_8x7b", "tokens=1e12", "why_not=tp=8,pp=1"),
    ],
    "plan with context parallelism": ["plan", *BIG, "model=llama3_70b", "layout.cp=4"],
    "sizes": ["plan", "cluster=azure_ndv4_a100_80g", "model=gpt3_13b", "sizes=8,64,1024", "train.global_batch=1024"],
    "sweep": ["plan", "-m", "cluster=azure_ndv4_a100_80g,fly_l40s", "layout.micro_batch=1,2", "model=gpt3_1b3"],
    "a plan that is there": ["plan", "plan=a.json"],
    "compare": ["compare", "a.json", "b.json"],
    "keys": ["keys"],
    "show": ["show", "cluster=dgx_a100_80g", "cluster.num_nodes=40"],
    "ls": ["ls"],
    "status": ["status", "last"],
    "mix": ["plan", "cluster=dgx_a100_80g", "train.global_batch=64", "mix=gpt3_125m:9,gpt3_760m:2,gpt3_1b3,gpt3_2b7"],
    "lint": ["lint", "job.sbatch"],
    "check": ["check"],
    "from another tool": ["plan", "from=ds.json", "cluster=dgx_a100_80g", "model=llama2_7b"],
}
ESCAPES = re.compile(r"\x1b\[\d*[mK]")
MEASURED = re.compile(r"\d|^(ms|s)$")  # numbers and their units differ from one time to the next


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "ds.json").write_text('{"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}')
    (folder / "job.sbatch").write_text((ROOT / "tests/lint/scripts/bloom_style.slurm").read_text())
    for name, micro_batch in (("a", 1), ("b", 2)):
        words = ["cluster=dgx_a100_80g", "model=gpt3_1b3", f"layout.micro_batch={micro_batch}"]
        assert main(["plan", *words, f"save={folder / name}.json"]) == 0
    for name in ("runs/llama2_7b-20261129-173718-with-rope-of-500000", "runs/gpt"):
        a_run(folder / name)
    return folder


def a_run(path: Path) -> None:
    """A run that has ended, as its writers leave it."""
    path.parent.mkdir(exist_ok=True)
    run, owner = create_run_folder(path), this_process()
    claim(run, owner)
    ledger = Ledger(run.ledger, node=0, began=time.monotonic())
    for phase in PHASES:
        ledger.note(phase)
    MetricsFile(run.metrics).log(StepMetrics(70_000, loss=2.5, step_s=1.25, tokens_per_s=1e6))
    release(run, owner, ended="done")


def words_of(text: str) -> set[str]:
    return {word for word in ESCAPES.sub("", text).split() if not MEASURED.search(word)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_line_fits_and_no_word_is_cut(
    command: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    main(COMMANDS[command])
    without = words_of(capsys.readouterr().out)
    for columns in (80, 120):
        text = at_terminal(COMMANDS[command], columns=columns, monkeypatch=monkeypatch)
        lines = ESCAPES.sub("", text).splitlines()
        assert lines
        wide = [line for line in lines if len(line) > columns and " " in line.strip()]
        assert (columns, wide) == (columns, [])
        assert words_of(text) <= without, f"{columns} columns"


def test_ls_has_a_line_for_each_run_and_where_that_is_too_wide_one_below(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    reached = r"step 70000, loss 2\.5000, 1\.2 s a step, 1,000,000 tokens/s"
    head, *lines = at_terminal(["ls"], columns=200, monkeypatch=monkeypatch).splitlines()
    assert head.split() == ["run", "began", "(UTC)", "state", "progress", "where"]
    assert len(lines) == 2 and re.fullmatch(rf"runs/gpt +[\d:]+ +done +{reached} process \d+ on .+", lines[0])
    head, *lines = at_terminal(["ls"], columns=80, monkeypatch=monkeypatch).splitlines()
    assert head.split() == ["run", "began", "(UTC)", "state"]
    assert re.fullmatch(r"runs/gpt +[\d:]+ +done", lines[0]) and re.match(rf"  {reached}", lines[1])


def test_tables_of_trials_and_of_sweeps_fit_and_take_no_colour_where_none_is_wanted(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "terminal_width", lambda stream: 80)
    monkeypatch.setattr(sweep_here, "terminal_width", lambda stream: 80)
    rows = [{"run": i, "state": "failed (1)", "on": "cores 0–3", "layout": "tp2 pp2 dp2 mb8 zero1", "seconds": 75.2,
             "steps": 400, "loss": 2.5, "step_s": 0.25, "overrides": "train.lr=3e-4 train.weight_decay=0.1"}
            for i in range(3)]  # fmt: skip
    trials = [Trial(read_plan(home / f"{name}.json"), 0.3, note="stopped early: slower than the best") for name in "ab"]
    for lines in (sweep_here.table(rows), tune._table(trials)):
        assert len(lines) > 2 and max(map(len, lines)) <= 80
        assert "\x1b" not in "".join(lines)


def test_the_heading_says_batch_sequence_dtype_and_stack(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMANDS["plan"], "train.dtype=bf16"]) == 0
    second = capsys.readouterr().out.splitlines()[1]
    assert second == "global batch 256 × 2,048 tokens (524.3K a step), bf16, stack launcher"


@pytest.mark.parametrize(
    ("variables", "bold"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_bold_text_is_for_those_who_want_it(
    variables: dict[str, str], bold: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    text = at_terminal(COMMANDS["plan"], columns=100, monkeypatch=monkeypatch)
    assert ("\x1b[" in text) == bold


def test_what_makes_a_line_bold_takes_no_column() -> None:
    assert console.fitted(["\x1b[1m12345 789\x1b[0m", "12345 7890"], 9) == [
        "\x1b[1m12345 789\x1b[0m",
        "12345",
        "    7890",
    ]


def test_without_a_terminal_lines_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(COMMANDS["plan"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) > 120


def test_a_table_leaves_out_what_it_can_spare_and_then_takes_more_lines() -> None:
    columns = {"name": LEFT, "n": RIGHT, "spare": RIGHT}
    rows = [["some words that are many", "1", "12345"], ["few", "22", "1"]]
    assert draw(columns, rows, width=30, spare=("spare",)) == [
        "name                      n", "some words that are many  1", "few                      22",
    ]  # fmt: skip
    assert draw(columns, rows, width=18, spare=("spare",)) == [
        "name             n", "some words that  1", "are many", "few             22",
    ]  # fmt: skip


def test_progress_is_shown_after_a_second_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PATIENCE_S", 0.0)
    monkeypatch.setattr(console, "terminal_width", lambda stream: 80 if stream is sys.stderr else None)
    assert list(console.counted([1, 2, 3], "planning")) == [1, 2, 3]
    shown = capsys.readouterr().err
    assert "planning: 2 of 3" in shown and shown.endswith("\x1b[K")
    monkeypatch.setattr(console, "terminal_width", lambda stream: None)
    assert list(console.counted([1], "planning")) == [1]
    assert capsys.readouterr().err == ""


def test_a_long_search_is_shown_on_a_terminal_and_removed_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    monkeypatch.setattr(console, "PATIENCE_S", 0.001)
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with console.waiting("searching layouts"):
            shown = os.read(master, 100)  # waits until there is something
        while not shown.endswith(b"\x1b[K"):
            shown += os.read(master, 100)
    os.close(master)
    assert shown.startswith(b"\rsearching layouts: ")


def test_a_search_shows_nothing_where_no_terminal_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PATIENCE_S", 0.0)
    assert main(["plan", "cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64"]) == 0
    assert "searching" not in capsys.readouterr().err
