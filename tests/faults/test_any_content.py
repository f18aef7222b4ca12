"""What looks at a run, whatever is in the place of its files: a result or the project's own error, soon."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from text_targets import _files, _written_run

from launcher.cli import main
from launcher.cost.estimate import Estimate
from launcher.planner.record import read_plan, write_plan
from launcher.run.folder import RunFolder

ESTIMATE = asdict(Estimate(1.0, (0.9, 1.1), True, 0.9, 1e9, 8e10, 0, 1, 1, 0.4, 0.4, 9.0, None, {"gradients": 1.0}, {}))
COMMANDS = ("status", "status output=json", "logs", "report file=page.html", "ls", "compare .", "sync dry_run=true")
KINDS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "nothing": lambda path: path.touch(),
    "zeros": lambda path: path.write_bytes(bytes(10_000)),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _written_run(tmp_path_factory.mktemp("written") / "run")
    write_plan(replace(read_plan(folder.plan), estimate=json.loads(json.dumps(ESTIMATE))), folder.plan)
    folder.rank_log(0).write_text("step 1\n")
    return folder.path


@pytest.fixture
def folder(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    shutil.copytree(written, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return RunFolder(tmp_path / "run")


def looked_at(folder: RunFolder, words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, which must end with an answer or one error; return what it printed."""
    name, *options = words.split()
    code = main(
        [name, *([] if name == "ls" else [str(folder.path)]), *(o.replace(".", "run", o == ".") for o in options)]
    )
    said = capsys.readouterr()
    assert code in (0, 1, 2)
    assert "Traceback" not in said.err
    return said.out + said.err


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_ends_no_look_at_a_run(
    kind: str, folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {**_files(folder), "rank log": folder.rank_log(0)}
    for file in files.values():
        content = file.read_bytes()
        file.unlink()
        KINDS[kind](file)
        for words in COMMANDS:
            looked_at(folder, words, capsys)
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
        file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        {"mfu": "much"}, {"mfu": []}, {"time": None}, {"step_time_s": 0}, {"step_time_s": float("nan")},
        {"memory_bytes_per_gpu": -1}, {"usable_memory_bytes": float("inf")}, {"worst_stage": 99}, {"more": 1},
        *({name: ...} for name in ESTIMATE),
    ],
)  # fmt: skip
def test_a_plan_with_a_damaged_estimate_is_refused_by_what_shows_it(
    damage: dict[str, object], folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(folder.plan.read_text())
    document["estimate"] = {k: v for k, v in (document["estimate"] | damage).items() if v is not ...}
    folder.plan.write_text(json.dumps(document))
    for words in ("report file=page.html", "compare ."):
        assert "is not a plan of this launcher" in looked_at(folder, words, capsys)
    assert main(["plan", f"plan={folder.plan}"]) == 2
    assert "is not a plan of this launcher" in capsys.readouterr().err


@pytest.mark.parametrize("since", [float("nan"), float("inf"), -1e300, 1e300, 2**63, -1])
def test_a_time_that_is_none_is_shown_as_such(
    since: float, folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.owner.write_text(json.dumps(json.loads(folder.owner.read_text()) | {"since": since}))
    for words in COMMANDS:
        looked_at(folder, words, capsys)
    assert main(["ls"]) == 0


@pytest.mark.parametrize(
    ("name", "field"),
    [("node state", "host"), ("node state", "message"), ("owner.json", "host"), ("owner.json", "job_id")],
)
def test_control_characters_in_a_record_reach_no_terminal(
    name: str, field: str, folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _files(folder)[name]
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: "a\x1b[31mb\x00\x7f"}))
    for words in COMMANDS:
        said = looked_at(folder, words, capsys)
        assert said.replace("\n", "").isprintable()
