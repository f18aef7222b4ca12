"""Every command answers output=json with one document of its schema, errors too; help's examples work on a run."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import jsonschema
import preloaded
import pytest

from launcher.cli import main
from launcher.commands.schemas import SCHEMAS, schema_of
from launcher.commands.table import COMMANDS
from launcher.faststart import library_load
from launcher.run.wandb_folders import wandb_id, wandb_root

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SMALL = ["cluster.node.num_gpus=2", "layout.tp=1", "layout.pp=1", "train.steps=2", "train.global_batch=4"]
DGX = ["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64"]
# A command line of each command that ends well, its code, and one that is refused.
SOUND: dict[str, list[tuple[list[str], int]]] = {
    "plan": [
        ([*DGX, "why_not=tp=8", "tokens=1e9"], 0),
        (["-m", "cluster=fly_l40s,dgx_a100_80g", "model=gpt3_13b"], 0),
        (["-m", "layout.tp=1,2", *DGX], 0),
        (["sizes=8,16", *DGX], 0),
        ([*DGX[:1], "mix=gpt3_125m:2,gpt3_2b7"], 0),
        (["plan=runs/mine"], 0),
        (["from=ds.json", "cluster=dgx_a100_80g", "model=llama2_7b"], 0),
    ],
    "submit": [([*DGX, "dry_run=true"], 0), (["-m", "train.lr=1e-3,2e-3", "dry_run=true"], 0)],
    "discover": [(["dry_run=true"], 0), (["collector=true"], 0), (["name=here"], 0)],
    "check": [([], 1), ([], 0)],
    "ls": [([], 0), (["top=1"], 0)],
    "status": [(["runs/mine"], 0)],
    "logs": [(["runs/mine"], 0), (["runs/mine", "--rank", "1"], 0)],
    "cancel": [(["runs/other"], 0)],
    "warm": [(["status"], 1), (["stop"], 0)],
    "export": [(["runs/mine", "to=torchrun"], 0), ([*DGX, "to=torchtitan", "out=exported"], 0)],
    "report": [(["runs/mine"], 0), ([*DGX, "file=page.html"], 0)],
    "keys": [(["layout"], 0), ([], 0)],
    "compare": [(["runs/mine", "runs/other"], 0)],
    "sync": [(["runs/tracked", "dry_run=true"], 0)],
    "new": [(["recipe", "probe"], 0), (["cluster", "site"], 0)],
    "lint": [(["train.sbatch"], 0)],
    "show": [(["cluster=dgx_a100_80g"], 0), (["out=cluster.svg"], 0)],
    "tune": [(["top=2", "dry_run=true"], 0)],
    "calibrate": [(["nccl.txt", "cluster=dgx_a100_80g", "dry_run=true"], 0)],
}
REFUSED = {
    "plan": [["model=foo"], ["layout.tp=x"], ["--frobnicate"]],
    "run": [["model=foo"], ["script=nowhere.py"]],
    "submit": [["model=foo"]],
    "discover": [["from=nowhere", "name=x"], ["nme=x"]],
    "check": [["cluster=foo"]],
    "ls": [["top=²"], ["all=true"]],
    "status": [["runs/none"], []],
    "logs": [["runs/none"], ["runs/mine", "follow=true"]],
    "cancel": [["runs/none"]],
    "warm": [["begin"]],
    "export": [["to=foo"], []],
    "report": [["runs/none"]],
    "keys": [["xyzzy"]],
    "compare": [["runs/mine"]],
    "sync": [["runs/mine"], ["runs/mine", "dry_run=maybe"]],
    "new": [["recipe"], ["recipe", "gpt"], ["model", "x"], ["cluster", "a-b"]],
    "lint": [[]],
    "show": [["cluster=foo"], ["out=x.png"]],
    "tune": [["recipe=gemm"], ["steps=none"]],
    "calibrate": [["nowhere.txt", "cluster=dgx_a100_80g"], []],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of a recipe; the document of the first is in first.json."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("mine", "other"):
        words = ["run", *SMALL, "tracking=none", f"run_dir=runs/{name}", "output=json"]
        done = preloaded.run(
            [sys.executable, "-m", "launcher.cli", *words], cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        (folder / f"{name}.out").write_text(done.stdout)
        (folder / f"{name}.err").write_text(done.stderr)
    for path in offline_folders(folder / "runs" / "tracked"):
        path.mkdir(parents=True)  # as the test of wandb's own finds them: test_worker_tracking.py
    (folder / "ds.json").write_text('{"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}')
    row = "1073741824 268435456 float sum -1 8203.9 130.88 229.04 0 8203.9 130.88 229.04 0"
    (folder / "nccl.txt").write_text(f"# all_reduce_perf\n {row}\n")
    (folder / "train.sbatch").write_text((ROOT / "tests" / "lint" / "scripts" / "clean.sbatch").read_text())
    return folder


def offline_folders(run_dir: Path) -> list[Path]:
    return [wandb_root(run_dir) / f"offline-run-20260101_00000{n}-{wandb_id(run_dir)}" for n in (1, 2)]


def document(capsys: pytest.CaptureFixture[str], command: str, words: list[str]) -> tuple[int, Any]:
    code = main([command, *words, "output=json"])
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, schema_of(command))
    return code, found


def test_every_command_is_tried() -> None:
    assert set(SOUND) | {"run"} == set(REFUSED) == set(SCHEMAS)
    assert {name for name, entry in COMMANDS.items() if "json" in entry.formats} == set(SCHEMAS)


@pytest.mark.parametrize("command", SCHEMAS)
def test_a_schema_is_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--schema"]) == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("command", SOUND)
def test_a_command_prints_one_document_of_its_schema(
    command: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    allowed = {code for _, code in SOUND[command]}
    for words, _ in SOUND[command]:
        code, found = document(capsys, command, words)
        assert code in allowed, found
        assert "error" not in found


@pytest.mark.parametrize("command", REFUSED)
def test_a_refusal_is_a_document_too(
    command: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(library_load, "possible", lambda: False)  # it forks, and this process would end
    for words in REFUSED[command]:
        code, found = document(capsys, command, words)
        assert (code, found["error"]["kind"], found["error"]["exit_code"]) == (2, "input", 2), words
        assert found["error"]["problems"]


def test_where_nothing_fits_the_document_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = document(capsys, "plan", ["cluster=fly_l40s", "model=gpt3_175b"])
    assert (code, found["error"]["kind"]) == (3, "no_layout_fits")
    code, found = document(capsys, "plan", ["-m", "cluster=fly_l40s,fly_a10", "model=gpt3_175b"])
    assert code == 3
    assert [row["plan"] for row in found["rows"]] == [None, None]


def test_a_run_prints_one_short_document_and_nothing_else(home: Path) -> None:
    lines = (home / "mine.out").read_text().splitlines()
    assert len(lines) == 1
    found = json.loads(lines[0])
    jsonschema.validate(found, schema_of("run"))
    assert len(lines[0]) < 1000
    assert set(found["losses"]) == {"first", "last"}
    assert found["layout"]["dp"] == 2
    assert found["predicted_step_time_s"] and found["measured_step_time_s"]
    rest = json.loads((home / found["result"]).read_text())
    assert len(rest["losses"]["all"]) == 2


def test_sync_takes_the_newest_run_which_has_all_steps(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    older, newest = offline_folders(Path("runs/tracked"))
    assert main(["sync", "runs/tracked", "dry_run=true"]) == 0
    shown = capsys.readouterr()
    assert shown.out.split()[-2:] == ["sync", str(newest)]
    assert str(older) in shown.err
    monkeypatch.setenv("WANDB_DIR", str(home / "elsewhere"))
    assert main(["sync", "runs/tracked", "dry_run=true"]) == 2
    assert "no offline run" in capsys.readouterr().err


RUN_EXAMPLES = [line for n, e in COMMANDS.items() for line in e.examples if "runs/mine" in line and n != "sync"]


@pytest.mark.parametrize("line", RUN_EXAMPLES)
def test_an_example_of_help_works_on_a_run(
    line: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    answers = (0, 1) if line.startswith("launcher compare") else (0,)  # 1: worse, as a run on a busy machine may be
    assert main(shlex.split(line)[1:]) in answers
    assert capsys.readouterr().out


def test_a_job_that_fails_is_a_document_too(home: Path) -> None:
    (home / "fails.py").write_text("raise SystemExit(3)\n")
    words = ["run", "script=fails.py", "launch.nproc_per_node=1", "launch.max_restarts=0", "output=json"]
    done = preloaded.run(
        [sys.executable, "-m", "launcher.cli", *words], cwd=home, capture_output=True, text=True, timeout=300
    )
    found = json.loads(done.stdout)
    jsonschema.validate(found, schema_of("run"))
    assert (done.returncode, found["error"]["kind"]) == (1, "job_failed")
