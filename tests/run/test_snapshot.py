"""launch.snapshot: which files are code, what a copy of them holds, and where a run works then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest

from launcher.errors import InputError
from launcher.planner import read_plan
from launcher.run import code as code_module
from launcher.run.code import find_code
from launcher.run.folder import RunFolder
from launcher.run.snapshot import Snapshot, take_snapshot

SCRIPT = """
import os, sys
from pathlib import Path
import helper
print(helper.WORD, Path.cwd(), __file__, Path("data/big.bin").read_text(), os.environ.get("PYTHONPATH"))
Path("out.txt").write_text("saved")
"""


def git(folder: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", folder, *words], check=True, capture_output=True
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a package, a script in a folder, ignored data, another run, and links."""
    root = tmp_path / "repo"
    for name, text in {
        "train/train.py": SCRIPT, "train/helper.py": "WORD = 'as submitted'\n", "src/pkg/__init__.py": "",
        "a name\nwith \u00e9.txt": "odd", ".gitignore": "train/data\n*.log\n", "train/data/big.bin": "much",
        "noise.log": "", "train/runs/old/owner.json": "{}", "train/runs/old/checkpoints/w.bin": "weights",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "inside").symlink_to("train/helper.py")
    (root / "outside").symlink_to("../elsewhere")
    (tmp_path / "elsewhere").write_text("other")
    git(root, "init", "-q")
    git(root, "add", "train", ".gitignore")
    git(root, "rm", "-q", "--cached", "-r", "train/runs")
    git(root, "commit", "-q", "-m", "first")
    return root


CODE = {
    ".gitignore", "train/train.py", "train/helper.py", "src/pkg/__init__.py", "a name\nwith \u00e9.txt",
    "inside", "outside",
}  # fmt: skip


def test_the_code_is_what_git_has_or_would_add_without_other_runs(repository: Path) -> None:
    code = find_code(repository / "train")
    assert (code.root, set(code.files)) == (repository, CODE)
    assert f"7 files, {code_module.format_bytes(code.num_bytes)}" in code.describe()
    git(repository, "rm", "-q", "--cached", "train/helper.py")
    (repository / "train" / "train.py").unlink()  # deleted, and not yet committed
    assert set(find_code(repository).files) == CODE - {"train/train.py"}


def test_the_code_of_a_repository_inside_is_code_too(repository: Path) -> None:
    inner = repository / "third party"
    inner.mkdir()
    git(inner, "init", "-q")
    (inner / "x.py").write_text("")
    assert "third party/x.py" in find_code(repository).files


def test_patterns_name_code_from_the_working_folder(repository: Path) -> None:
    code = find_code(repository / "train", ["*.py", "data/**"])
    assert (code.root, code.files) == (repository / "train", ("data/big.bin", "helper.py", "train.py"))
    with pytest.raises(InputError, match=r"launch\.code has '\*\.jl', which matches no file in"):
        find_code(repository, ["*.jl"])


def test_what_is_no_code_is_refused_with_what_to_do(repository: Path, tmp_path: Path, monkeypatch: object) -> None:
    with pytest.raises(InputError, match=r"is in no git repository: name the files of its code by launch\.code="):
        find_code(tmp_path)
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    with pytest.raises(InputError, match="there is no code to copy"):
        find_code(tmp_path / "empty")
    with (repository / "weights.bin").open("wb") as file:
        file.truncate(code_module.MOST_BYTES + 1)
    with pytest.raises(InputError, match=r"at most 256.* are copied: let git ignore what is data \(weights\.bin \("):
        find_code(repository)


def test_a_copy_has_the_code_and_links_to_everything_else(repository: Path) -> None:
    run = RunFolder(repository / "train" / "runs" / "new")
    run.path.mkdir()
    copy = take_snapshot(find_code(repository), run).copy
    assert {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file() and not p.is_symlink()} == CODE - {
        "inside", "outside",
    }  # fmt: skip
    assert (copy / "train" / "data").readlink() == repository / "train" / "data"
    assert (copy / "train" / "runs" / "old").is_symlink() and not (copy / "train" / "runs" / "new").exists()
    assert not (copy / ".git").exists()
    (repository / "train" / "helper.py").write_text("WORD = 'edited'\n")
    (repository.parent / "elsewhere").write_text("edited")
    assert "as submitted" in (copy / "inside").read_text()
    assert (copy / "outside").read_text() == "edited"  # it is no part of the code


def test_a_second_copy_follows_the_code_and_keeps_what_the_run_saved(repository: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    copy = take_snapshot(find_code(repository), run).copy
    (copy / "train" / "ckpt.pt").write_text("saved")
    (repository / "train" / "helper.py").unlink()
    (repository / "train" / "train.py").write_text("new")
    take_snapshot(find_code(repository), run)
    assert not (copy / "train" / "helper.py").exists()
    assert (copy / "train" / "train.py").read_text() == "new"
    assert (copy / "train" / "ckpt.pt").read_text() == "saved"


def test_paths_of_the_code_lead_into_the_copy(repository: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    snapshot = take_snapshot(find_code(repository), run)
    assert snapshot.of(repository / "train" / "x.py") == snapshot.copy / "train" / "x.py"
    assert snapshot.of(Path("/usr/bin/x")) == Path("/usr/bin/x")
    entries = [str(repository / "src"), str(repository / "train" / "data"), "/usr/lib", ""]
    assert snapshot.search_path(entries) == [str(snapshot.copy / "src")]  # data is linked, no copy
    assert Snapshot(Path("/a"), Path("/b")).of(Path("/ab")) == Path("/ab")


@pytest.mark.slow
def test_a_run_starts_from_its_copy_and_its_plan_keeps_the_original(repository: Path) -> None:
    command = [sys.executable, "-P", "-m", "launcher.cli", "run", "script=train.py", "run_dir=../run"]
    environment = {**os.environ, "PYTHONPATH": str(repository / "src")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return preloaded.run(
            [*command, "launch.nproc_per_node=1", "launch.warm=never", *words],
            cwd=repository / "train", env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    done = run("launch.snapshot=true")
    assert done.returncode == 0, done.stderr
    copy = repository / "run" / "code" / "train"
    said = done.stdout.split()
    assert said[:5] == ["as", "submitted", str(copy), str(copy / "train.py"), "much"]
    assert said[5].split(":")[0] == str(repository / "run" / "code" / "src")
    assert "7 files, " in done.stderr and (copy / "out.txt").exists()
    assert not (repository / "train" / "out.txt").exists()
    folder = RunFolder(repository / "run")
    targets = [str(read_plan(file).options.program.target) for file in (folder.plan, folder.plan_of_start)]  # type: ignore[union-attr]
    assert targets == [str(repository / "train" / "train.py"), str(copy / "train.py")]

    done = run("launch.snapshot=false")  # the same folder again, from the original
    assert done.stdout.split()[2:] == [
        str(repository / "train"), str(repository / "train" / "train.py"), "much", str(repository / "src"),
    ]  # fmt: skip


def test_a_script_that_is_not_copied_is_refused_before_anything_is_written(repository: Path) -> None:
    """In a process of its own, which `run` ends with this code."""
    words = ["launch.snapshot=true", "run_dir=run", "launch.nproc_per_node=1", "launch.warm=never"]
    (repository / "train" / "data" / "t.py").write_text("")
    for asked, why in (
        (["script=train/data/t.py"], "t.py is not part of the code, since git ignores it"),
        (["script=train/train.py", "launch.code=['train/h*.py']"], "since no pattern of launch.code matches it"),
    ):
        done = preloaded.run(
            [sys.executable, "-m", "launcher.cli", "run", *asked, *words],
            cwd=repository, env=dict(os.environ), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 2 and why in done.stderr
    assert not (repository / "run").exists()
