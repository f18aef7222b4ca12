"""Every command of every page runs as it is written, or says what it needs that a test machine has not.

A comment before a block says what it needs: `<!-- needs: GPUs -->` (or one of NEEDS), `<!-- run by: tests/… -->` where
another test runs it, or `<!-- file: path -->` if it is a file for the commands. `console` blocks show output: it is
compared line by line, where `…` leaves something out; `<!-- figures change -->` compares the first lines.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.commands.table import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", ".github/CONTRIBUTING.md"]
FOLDERS = ("configs", "launcher", "launcher/*", "recipes", "slurm", "tests")
PAGES += sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in ROOT.glob(f"{folder}/README.md"))
LANGUAGES = {"bash", "console", "python", "yaml", "json", "text"}
FENCE = re.compile(r"(?:^<!-- (?P<note>.+?) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = {"GPUs", "Slurm", "hosts", "network", "an outer shell"}
EXIT_CODES = (0, 2, 3)
SECONDS = 300


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    body: str
    note: str

    @property
    def needs(self) -> str:
        return self.note.removeprefix("needs: ") if self.note.startswith("needs: ") else ""

    @property
    def run_by(self) -> str:
        return self.note.removeprefix("run by: ") if self.note.startswith("run by: ") else ""

    @property
    def file(self) -> str:
        return self.note.removeprefix("file: ") if self.note.startswith("file: ") else ""

    @property
    def runs(self) -> bool:
        return not self.needs and not self.run_by


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [Block(page, m["language"], m["body"], m["note"] or "") for m in FENCE.finditer(text)]


EVERY = [block for page in PAGES for block in blocks(page)]


def commands(block: Block) -> list[str]:
    """The lines of a block that call the launcher."""
    lines = [line.removeprefix("$ ").strip() for line in block.body.splitlines()]
    return [line for line in lines if line.startswith("launcher ")]


@pytest.mark.parametrize("block", EVERY, ids=lambda block: f"{block.page}: {block.body.splitlines()[0][:50]}")
def test_a_block_says_what_it_is_and_names_commands_that_exist(block: Block) -> None:
    assert block.language in LANGUAGES, "say what it is: ```bash, ```console, ```python, ```yaml, ```json or ```text"
    if block.language == "text":
        assert commands(block) == [], "commands are in ```bash or ```console blocks, so that they are run"
    assert not block.needs or set(block.needs.split(", ")) <= NEEDS
    assert not block.run_by or (ROOT / block.run_by).exists()
    for line in commands(block):
        for name in line.split()[1].split("|"):
            assert name in COMMANDS or name.startswith("-") or name == "COMMAND"


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.runs for block in blocks(page))])
def test_the_commands_of_a_page_run_as_they_are_written(page: str, tmp_path: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks(page):
        if not block.runs:
            continue
        if block.file:
            path = tmp_path / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body)
        elif block.language == "python":
            with contextlib.chdir(tmp_path):  # an example may save a plan
                exec(block.body, names)
        elif block.language == "bash":
            done = shell(block.body, tmp_path)
            assert done.returncode == 0, f"{block.body}\n{done.stdout}"
        elif block.language == "console":
            for command, shown in typed(block.body):
                check_output(command, shown, first_alone=block.note == "figures change", folder=tmp_path)


def typed(body: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block, with the output that is shown."""
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, *shown = part.rstrip("\n").split("\n")
        yield command, [line for line in shown if line.strip()]


def check_output(command: str, shown: list[str], *, first_alone: bool, folder: Path) -> None:
    done = shell(command, folder)
    refused = any(line.startswith("launcher: ") for line in shown)
    assert done.returncode in (EXIT_CODES[1:] if refused else EXIT_CODES[:1]), f"{command}\n{done.stdout}"
    printed = [line for line in done.stdout.splitlines() if line.strip()]
    position = 0
    for line in shown[:1] if first_alone else shown:
        if line.strip() == "…":
            continue
        found = next((i for i, one in enumerate(printed[position:], position) if is_shown(line, one)), None)
        assert found is not None, f"{command} does not print\n{line}\nbut\n{done.stdout}"
        position = found + 1


def is_shown(line: str, printed: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, line.rstrip().split("…"))), printed.rstrip()) is not None


def shell(body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block in a shell that has `launcher` and `python` of this environment; both streams in one."""
    tools = folder / ".tools"
    if not tools.exists():
        tools.mkdir()
        for name, words in {"launcher": "-m launcher.cli", "python": ""}.items():
            (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
            (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    return subprocess.run(
        [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", body],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS,
    )  # fmt: skip


def test_every_page_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert [page for page in PAGES[1:] if f"]({page})" not in text] == []


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        text = FENCE.sub("", (ROOT / page).read_text())
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert target.startswith("http") or ((ROOT / page).parent / target).exists(), f"{page} links {target}"
