"""The newest good checkpoint, as `launcher status`, the requeue and a new start see it: without reading a tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.run.checkpoints import DAMAGED, MANIFEST, VERSION, folder_name, newest_good, rank_file, write_manifest
from launcher.run.folder import RunFolder, create_run_folder
from launcher.run.owner import claim, release, this_process

LARGE_BYTES = 1 << 40  # no test has the time to read it


def ended_run(path: Path) -> RunFolder:
    folder, owner = create_run_folder(path), this_process()
    claim(folder, owner)
    release(folder, owner, ended="done")
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """An ended run with checkpoints after steps 20, 40 and 60 of two ranks, each file with a hole of a tebibyte."""
    folder = ended_run(tmp_path / "run")
    for step in (20, 40, 60):
        checkpoint = folder.checkpoints / folder_name(step)
        checkpoint.mkdir(parents=True)
        files = {rank_file(rank): {"bytes": LARGE_BYTES} for rank in range(2)}
        for name in files:
            with (checkpoint / name).open("wb") as file:
                file.truncate(LARGE_BYTES)
        write_manifest(checkpoint, {"version": VERSION, "step": step, "files": files})
    return folder.path


def rewrite(body: object) -> Callable[[Path], object]:
    return lambda folder: write_manifest(folder, body)  # type: ignore[arg-type]


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file is short": (lambda folder: os.truncate(folder / rank_file(1), 100), "has 100 bytes instead of"),
    "a file is long": (lambda folder: os.truncate(folder / rank_file(1), LARGE_BYTES + 1), "instead of"),
    "a file is gone": (lambda folder: (folder / rank_file(0)).unlink(), "No such file"),
    "the manifest is gone": (lambda folder: (folder / MANIFEST).unlink(), "cannot be read"),
    "the manifest is a pipe": (
        lambda folder: ((folder / MANIFEST).unlink(), os.mkfifo(folder / MANIFEST)), "not a regular file",
    ),
    "the manifest is changed": (
        lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace("60", "61")), "digest",
    ),
    "the manifest is of a later launcher": (rewrite({"version": 99, "files": {}}), "has version 99"),
    "no files are listed": (rewrite({"version": VERSION}), "does not list the files"),
    "files without sizes": (rewrite({"version": VERSION, "files": {"a": {"bytes": "1"}}}), "does not list the files"),
    "a name with a zero byte": (rewrite({"version": VERSION, "files": {"a\0": {"bytes": 1}}}), "cannot be read"),
    "ranks have found it changed": (lambda folder: (folder / DAMAGED).write_text("x\x1b[2J\n"), "x"),
    "an empty record": (lambda folder: (folder / DAMAGED).touch(), "says that it is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_not_the_newest_good_one(
    kind: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = run_dir / "checkpoints"
    assert (newest_good(checkpoints).step, newest_good(checkpoints).damaged) == (60, {})
    damage, problem = DAMAGE[kind]
    damage(checkpoints / folder_name(60))
    found = newest_good(checkpoints)
    assert found.step == 40 and problem in found.damaged[60]
    assert main(["status", str(run_dir)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "checkpoint" in line)
    assert line.startswith("  newest good checkpoint: step 40; step 60 is not used: ") and line.isprintable()
    assert main(["status", str(run_dir), "output=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["checkpoint_step"] == 40 and problem in document["checkpoint"]


def test_status_names_the_newest_checkpoint_where_there_is_one(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(run_dir)]) == 0
    assert "\n  newest checkpoint: step 60\n" in capsys.readouterr().out
    for step in (20, 40, 60):
        (run_dir / "checkpoints" / folder_name(step) / rank_file(0)).unlink()
    assert newest_good(run_dir / "checkpoints").step is None
    assert main(["status", str(run_dir)]) == 0
    assert "no good checkpoint; step 60 is not used" in capsys.readouterr().out


def test_nothing_is_said_of_checkpoints_where_there_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(ended_run(tmp_path / "run").path)]) == 0
    assert "checkpoint" not in capsys.readouterr().out
