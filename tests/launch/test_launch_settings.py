"""`launch.*` as the user gives it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launcher.agent.settings import LaunchSettings
from launcher.errors import InputError
from launcher.resources import resource


def shipped() -> dict[str, object]:
    return dict(yaml.safe_load((resource("configs") / "launch" / "local.yaml").read_text()))


def test_the_shipped_file_sets_every_key_to_its_default() -> None:
    assert LaunchSettings.from_config(shipped()) == LaunchSettings.from_config({}) == LaunchSettings()
    assert set(shipped()) == set(LaunchSettings.__dataclass_fields__)


def test_all_problems_are_told_at_once() -> None:
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
    with pytest.raises(InputError) as told:
        LaunchSettings.from_config(wrong)
    for key in wrong:
        assert any(f"launch.{key}" in problem for problem in told.value.problems), key
    assert len(told.value.problems) == len(wrong)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["SIGUSR1", "term"], (signal.SIGUSR1, signal.SIGTERM)),
        ("USR2", (signal.SIGUSR2,)),
        (None, (signal.SIGINT, signal.SIGTERM)),
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
