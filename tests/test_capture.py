"""Commands of the site: what they print is taken up to a size and for a time."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from launcher.capture import capture

HERE = {"PATH": "/bin:/usr/bin"}


def test_what_a_command_prints_and_its_code_are_taken() -> None:
    done = capture(["sh", "-c", "echo out; echo err >&2; cat; exit 3"], environment=HERE, timeout_s=60)
    assert (done.code, done.out, done.err) == (3, "out\n", "err\n")


def test_a_command_that_prints_without_end_is_killed() -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match="more than 1000000 bytes"):
        capture(["yes"], environment=HERE, timeout_s=240, most_bytes=10**6)
    assert time.monotonic() - began < 120


def test_a_command_that_takes_too_long_is_killed_with_its_time() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        capture(["sleep", "60"], environment=HERE, timeout_s=0.2)


def test_a_grandchild_that_keeps_the_output_open_is_not_waited_for() -> None:
    began = time.monotonic()
    code = "import os, subprocess; print(subprocess.Popen(['sleep', '1000']).pid, flush=True)"
    done = capture([sys.executable, "-c", code], environment=HERE, timeout_s=240)
    assert time.monotonic() - began < 120
    subprocess.run(["kill", done.out.strip()], check=True)


def test_a_command_that_is_not_there_is_an_error_of_the_system() -> None:
    with pytest.raises(FileNotFoundError):
        capture(["/no/such/command"], environment=HERE, timeout_s=1)
