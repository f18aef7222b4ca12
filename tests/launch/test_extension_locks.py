"""Locks of compiled extensions: their owners, and the warning about stale ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import preloaded
import pytest

from launcher.preflight.extensions import extension_locks, extensions_folder, lock_findings

COMPILES = """
import sys, time
from torch.utils.cpp_extension import _get_build_directory
from torch.utils.file_baton import FileBaton
from pathlib import Path
lock = Path(_get_build_directory("some_operator", False)) / "lock"
assert FileBaton(str(lock)).try_acquire()
print(lock, flush=True)
time.sleep(1000)
"""


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR"])
def test_a_lock_is_named_when_its_process_was_killed_and_not_before(variable: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR")}
    environment[variable] = str(tmp_path)
    compiling = preloaded.Popen([sys.executable, "-c", COMPILES], env=environment, stdout=subprocess.PIPE, text=True)
    assert compiling.stdout is not None
    try:
        path = Path(compiling.stdout.readline().strip())
        assert path.is_relative_to(extensions_folder(environment))
        assert [(lock.path, lock.held) for lock in extension_locks(environment)] == [(path, True)]
        assert lock_findings(environment) == []
    finally:
        compiling.kill()
        compiling.communicate()
    assert [(lock.path, lock.held) for lock in extension_locks(environment)] == [(path, False)]
    os.utime(path, (time.time() - 7300, time.time() - 7300))
    (finding,) = lock_findings(environment)
    assert f"{path} is 2 hours old and no process of this machine holds it" in finding.message
    assert "some_operator" in finding.message


def test_a_home_without_extensions_has_no_locks(tmp_path: Path) -> None:
    assert lock_findings({"HOME": str(tmp_path)}) == []


def test_a_start_and_the_preflight_name_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    (tmp_path / "train.py").touch()

    def said(*words: str) -> str:
        command = [sys.executable, "-m", "launcher.cli", *words]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TORCH_EXTENSIONS_DIR": str(tmp_path)}
        done = preloaded.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        return done.stdout + done.stderr

    assert f"{lock} is" in said("check")
    assert f"{lock} is" in said("run", "script=train.py", "cluster.node.num_gpus=1", "run_dir=run")
