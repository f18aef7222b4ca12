"""Random configurations end in a result or in the project's own error: a sample; the program runs as many as wanted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main

PROGRAM = Path(__file__).parent / "random_configurations.py"


@pytest.mark.parametrize(
    "words", [["model=\x1b[31mx"], ["script=x", "train.steps=1", "~a", "b=\x1b]0;x\x07"], ["\x9b=1"]]
)
def test_a_message_sends_the_user_s_own_control_characters_to_no_terminal(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 2
    said = capfd.readouterr().err
    assert said.startswith("launcher: ")
    assert not [sign for sign in said if not sign.isprintable() and sign != "\n"]


@pytest.mark.slow
def test_a_sample_of_random_configurations_ends_well() -> None:
    """In a process of its own: it limits its memory and its time."""
    done = subprocess.run([sys.executable, str(PROGRAM), "--cases", "100"], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr
    ended = re.search(r"(\d+) ended with 0", done.stdout)
    assert ended and int(ended[1]) > 5, done.stdout  # not all are refused
