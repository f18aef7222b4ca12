"""`launch.*` as the user gives it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.agent.settings import LaunchSettings
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.schema import from_plain, to_plain


def test_the_shipped_file_changes_nothing() -> None:
    assert load([]).options.launch == LaunchSettings.from_config({}) == LaunchSettings()


def test_settings_come_back_from_what_another_process_is_given() -> None:
    settings = LaunchSettings(stop_signals=(signal.SIGUSR1,), hang_timeout_s=None, preload=("json",))
    assert from_plain(LaunchSettings, json.loads(json.dumps(to_plain(settings)))) == settings


def test_all_problems_are_reported_at_once() -> None:
    wrong = {
        "start": "clone",
        "preload": "torch",
        "console": "rank1",
        "omp_num_threads": 0,
        "max_restarts": -1,
        "refill_steps": 0,
        "stop_signals": ["KILL"],
        "grace_s": -1,
        "hang_timeout_s": 0,
        "coordinator": "node0:0",
        "shrink_to": 0,
        "warm": "always",
        "no_such_key": 1,
    }
    with pytest.raises(InputError) as reported:
        LaunchSettings.from_config(wrong)
    for key in wrong:
        assert any(f"launch.{key}" in problem for problem in reported.value.problems), key
    assert len(reported.value.problems) == len(wrong)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["SIGUSR1", "term"], (signal.SIGUSR1, signal.SIGTERM)),
        ("USR2", (signal.SIGUSR2,)),
        ([], ()),
    ],
)
def test_signals_are_read_by_name(given: object, read: tuple[signal.Signals, ...]) -> None:
    assert LaunchSettings.from_config({"stop_signals": given}).stop_signals == read


def test_a_hang_timeout_can_be_switched_off() -> None:
    assert LaunchSettings.from_config({"hang_timeout_s": None}).hang_timeout_s is None


@pytest.mark.parametrize("endpoint", ["node0:29500", "[::1]:1", "10.0.0.1:65535"])
def test_a_coordinator_is_a_host_and_a_port(endpoint: str) -> None:
    assert LaunchSettings.from_config({"coordinator": endpoint}).coordinator == endpoint


def test_settings_need_no_torch(tmp_path: Path) -> None:
    code = "import sys, launcher.agent.settings, launcher.local.start; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_a_hangup_that_this_process_was_started_to_ignore_is_no_stop_signal() -> None:
    settings = LaunchSettings.from_config({})
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert settings.handled_signals() == (signal.SIGINT, signal.SIGTERM)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert settings.handled_signals() == (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
