"""Help teaches: each command shows its own keys, formats and two lines to copy, which work."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.commands.help import WIDTH, overview
from launcher.commands.schemas import SCHEMAS
from launcher.commands.table import COMMANDS
from launcher.config.overrides import every_key

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = [(name, line) for name, entry in COMMANDS.items() for line in entry.examples]
ON_A_RUN = ("runs/mine", "runs/other")  # those that need one are run by test_json_documents.py and its like
STARTS = ("run", "warm", "calibrate", "tune")  # they start ranks or servers


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_the_commands_own_keys_formats_and_two_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, entry = shown(capsys, name, "--help"), COMMANDS[name]
    assert len(entry.examples) >= 2
    assert [line for line in entry.examples if f"  {line}\n" not in text] == []
    assert [key for key in (*entry.options, *entry.takes) if f"  {key}" not in text] == []
    assert [group for group in entry.groups if f"\n  {group} " not in text] == []
    assert "formats: text" in text
    assert ("--schema" in text) == ("json" in entry.formats) == (name in SCHEMAS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [*shown(capsys, name, "-h").splitlines(), *overview().splitlines()]
    assert [line for line in lines if len(line) > WIDTH and not line.startswith("  launcher ")] == []


def test_no_two_commands_have_the_same_help(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [shown(capsys, name, "--help") for name in COMMANDS]
    assert len(set(texts)) == len(COMMANDS)


def test_every_key_that_help_names_exists() -> None:
    named = {key for entry in COMMANDS.values() for key in entry.takes}
    assert named <= set(every_key())


@pytest.mark.parametrize(("name", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_an_example_of_help_works(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in STARTS and name != "run":
        pytest.skip("starts processes of its own: tests/launch and the tests of measuring run them")
    if any(run in line for run in ON_A_RUN):
        pytest.skip("needs a run: tests/commands/test_commands_on_a_run.py runs it")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("print('x')\n")
    (tmp_path / "train.sbatch").write_text((ROOT / "tests" / "lint" / "scripts" / "clean.sbatch").read_text())
    words = shlex.split(line.partition(" > ")[0])[1:]
    if name in ("run", "submit") and "dry_run=true" not in words:
        words.insert(1, "dry_run=true")
    assert main(words) in (0, 1) if name == "check" else main(words) == 0
    assert capsys.readouterr().out or name == "run"


def test_a_word_that_is_no_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stauts", "runs/x"]) == 2
    assert "stauts is no command: did you mean status" in capsys.readouterr().err


def test_m_is_refused_where_nothing_can_be_swept(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "-m", "to=rankfile", "layout.tp=1,2"]) == 2
    assert "one thing at a time" in capsys.readouterr().err


def test_the_overview_names_every_command() -> None:
    text = overview()
    assert [name for name in COMMANDS if f"\n  {name} " not in text] == []
