"""`launcher check` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli import main


def test_a_sound_node_ends_with_0(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["check", "cluster.node.num_gpus=1", f"run_dir={tmp_path}"]) == 0
    assert "run folder" in capsys.readouterr().out


def test_a_node_that_is_not_what_the_file_says_ends_with_1_and_is_excluded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi, whatever machine this is
    assert main(["check", "cluster=dgx_a100_80g", f"run_dir={tmp_path}", "output=json"]) == 1

    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["worst"] == "problem"
    assert {"level": "problem", "check": "gpu"}.items() <= document["findings"][0].items()
    assert f"--exclude={','.join(document['exclude'])}" in said.err
