"""The README's commands are the ones that CI runs and that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from launcher.commands.table import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return [body.strip() for body in re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)]


def test_ci_runs_the_very_test_command_of_the_readme() -> None:
    command = next(block for block in blocks("bash") if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_every_command_is_in_the_readme() -> None:
    table = README[README.index("## Commands") : README.index("## Goals")]
    assert [name for name in COMMANDS if name not in table] == []


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it saves a plan
    names: dict[str, object] = {}
    exec(blocks("python")[0], names)
    assert callable(names["estimate"])


def test_the_workflow_calls_what_ci_runs_and_nothing_else_that_tests() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "bash .ci/run" in workflow
    assert "pytest" not in workflow


def test_the_architecture_page_names_every_room() -> None:
    page = (ROOT / "launcher" / "README.md").read_text()
    folders = [f"{path.name}/" for path in (ROOT / "launcher").iterdir() if (path / "__init__.py").exists()]
    files = [path.stem for path in (ROOT / "launcher").glob("[!_]*.py") if path.stem not in ("api", "cli")]
    assert [name for name in (*folders, *files) if f"`{name}`" not in page] == []


def test_every_test_that_the_comparison_names_is_there() -> None:
    text = (ROOT / "launcher" / "README.md").read_text()
    rows = [line for line in text.partition("## Compared")[2].partition("\n## ")[0].splitlines() if line[:2] == "| "]
    named = [re.findall(r"`(tests/[\w/.]*)::(\w+)`", row) for row in rows[1:]]
    assert len(named) > 20
    assert [row for row, names in zip(rows[1:], named, strict=True) if not names] == []
    assert [f"{file}::{test}" for names in named for file, test in names if test not in _functions_of(file)] == []


def _functions_of(file: str) -> set[str]:
    """The names of a file's test functions."""
    path = ROOT / file
    tree = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
