"""With output=json every command answers a wrong line with one document of its schema, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.commands.schemas import schema_of
from launcher.commands.table import COMMANDS
from launcher.faststart import library_load

WRONG = (["no.such.key=1"], ["nothing/here"], ["--no-such-flag"])


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
@pytest.mark.parametrize("command", [name for name, entry in COMMANDS.items() if "json" in entry.formats])
def test_a_wrong_line_is_answered_by_a_document(
    command: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library_load, "possible", lambda: False)  # it would end this process
    assert main([command, *words, "output=json"]) == 2
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, schema_of(command))
    assert found["error"]["problems"] and found["error"]["exit_code"] == 2
    assert list(tmp_path.iterdir()) == []
