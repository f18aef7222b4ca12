"""What a parent has done to its signals, which a command inherits, changes neither a run's end nor its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PARENT = """\
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_blocked_signals_and_forgotten_children_hide_no_exit_code(tmp_path: Path) -> None:
    """With SIGCHLD blocked the end of a rank was never seen, with it ignored the command lost its exit code."""
    script = tmp_path / "ends.py"
    script.write_text("raise SystemExit(3)\n")
    words = [f"script={script}", "cluster=cpu", "cluster.node.num_gpus=1", f"run_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "launcher.cli", "run", *words]
    argv = [sys.executable, "-c", PARENT, *command]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "exit code 3" in done.stderr
