"""A run keeps what it was started by and from which code, and can be repeated from there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest

from launcher.cli import main
from launcher.commands.again import repeated
from launcher.commands.invocation import Invocation
from launcher.errors import InputError
from launcher.run.folder import RunFolder, create_run_folder
from launcher.run.provenance import code_of, differences, installed_packages, read_provenance, write_provenance

RUN = [sys.executable, "-P", "-m", "launcher.cli", "run", "launch.warm=never"]


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", folder, *names, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "train.py").write_text("import os, sys\nprint('said', os.environ['RANK'], sys.argv[1:])\n")
    git(folder, "add", "train.py")
    git(folder, "commit", "-q", "-m", "first")
    monkeypatch.chdir(folder)
    return folder


def test_the_commit_what_differs_from_it_and_the_packages_are_kept(repository: Path, tmp_path: Path) -> None:
    clean = code_of(repository)
    assert (clean.commit, clean.diff, clean.untracked) == (git(repository, "rev-parse", "HEAD").strip(), "", ())
    (repository / "train.py").write_text("changed = True\n")
    (repository / "new file").touch()
    folder = create_run_folder(tmp_path / "run")
    write_provenance(folder, ["script=train.py"], ["--lr", "3"])
    noted = read_provenance(folder)
    assert (noted.words, noted.args, noted.commit, noted.changed) == (
        ("script=train.py",), ("--lr", "3"), clean.commit, True,
    )  # fmt: skip
    assert "+changed = True" in folder.code_diff.read_text()
    assert noted.untracked == ('"new file"',) or noted.untracked == ("new file",)
    assert noted.packages == installed_packages()
    assert {"torch", "pytest"} <= set(noted.packages)
    assert differences(noted, folder) == []
    git(repository, "commit", "-q", "-a", "-m", "second")
    assert [line.partition(" was")[0] for line in differences(noted, folder)][:1] == ["the code"]
    write_provenance(folder, [], [])
    assert not folder.code_diff.exists()


def test_where_there_is_no_git_the_commit_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_of(tmp_path).commit is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_of(tmp_path).commit is None


def test_a_repeated_command_has_the_words_of_the_run_but_for_those_that_are_given(
    repository: Path, tmp_path: Path
) -> None:
    folder = create_run_folder(tmp_path / "run")
    words = ["script=train.py", "launch.nproc_per_node=2", "run_dir=x", "dry_run=true", "launch.max_restarts=1"]
    write_provenance(folder, words, ["a"])
    again = repeated(Invocation((f"again={folder.path}", "launch.max_restarts=3"), rest=("b",)))
    assert again.overrides == ("launch.nproc_per_node=2", f"plan={folder.path}", "launch.max_restarts=3")
    assert again.rest == ("b",)
    with pytest.raises(InputError, match="no folder of a run that can be repeated"):
        repeated(Invocation((f"again={tmp_path}",)))
    assert main(["plan", "again=last"]) == 2


@pytest.mark.slow
def test_a_run_is_repeated_in_a_folder_of_its_own_with_the_same_plan(repository: Path) -> None:
    first = preloaded.run(
        [*RUN, "script=train.py", "launch.nproc_per_node=2", "run_dir=runs/first", "--", "a b", "--x"],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    (repository / "train.py").write_text((repository / "train.py").read_text() + "# later\n")
    second = preloaded.run([*RUN, "again=last"], capture_output=True, text=True, timeout=200, check=True)
    assert first.stdout == second.stdout == "said 0 ['a b', '--x']\n"
    assert "what differs from the commit is another than then" in second.stderr
    [other] = [path for path in Path("runs").iterdir() if path.name != "first"]
    plans = [json.loads(RunFolder(path).plan.read_text()) for path in (Path("runs/first"), other)]
    assert plans[0] == plans[1]
    assert read_provenance(RunFolder(other)).args == ()
