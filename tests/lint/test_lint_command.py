"""`launcher lint` as a command: line breaks, sizes, what its help owns up to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.lint import LARGEST_SCRIPT


def test_dos_line_breaks_reach_the_rule_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "job.sbatch"
    script.write_bytes(b"#!/bin/bash\r\n#SBATCH -N1\r\nhostname\r\n")
    assert main(["lint", str(script), "output=json"]) == 1
    [finding] = json.loads(capsys.readouterr().out)[str(script)]
    assert (finding["rule"], finding["line"]) == ("dos-line-breaks", 1)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"x" * (LARGEST_SCRIPT + 1)])
def test_what_is_no_script_is_refused_in_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "job.sbatch"
    script.write_bytes(content)
    assert main(["lint", str(script)]) == 2
    assert "a batch script" in capsys.readouterr().err


def test_its_help_says_what_it_cannot_see(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "--help"]) == 0
    text = capsys.readouterr().out
    assert "cannot see" in text
    for word in ("sourced", "eval", "loop", "--export"):
        assert word in text
