"""slurm/testcluster says what it needs and what it does, also where there is no Slurm."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

COMMAND = Path(__file__).parents[2] / "slurm" / "testcluster"


def call(*words: str, path: str = "/nowhere") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(COMMAND), *words]
    return subprocess.run(argv, env={"PATH": path}, capture_output=True, text=True, timeout=60)


def test_help_explains_the_commands_and_what_to_install() -> None:
    text = call("--help").stdout
    assert "apt-get install -y --no-install-recommends slurm-wlm munge" in text
    for word in ("start", "stop", "status", "conf", "kill-node", "start-node", "slow-node", "--leaf"):
        assert word in text


def test_without_slurm_it_installs_nothing_and_says_what_is_missing(tmp_path: Path) -> None:
    source = COMMAND.read_text().replace(":/usr/sbin:/sbin", "")
    copy = tmp_path / "testcluster"
    copy.write_text(source)
    for part in COMMAND.parent.glob("testcluster_*.py"):
        shutil.copy(part, tmp_path)
    done = subprocess.run(
        [sys.executable, str(copy), "start", "--dir", str(tmp_path / "lab")],
        env={"PATH": "/nowhere"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "munged, slurmctld, slurmd, srun, unshare not found" in done.stderr
    assert not (tmp_path / "lab").exists()


def test_a_folder_without_a_cluster_is_named(tmp_path: Path) -> None:
    done = call("stop", "--dir", str(tmp_path))
    assert (done.returncode, str(tmp_path) in done.stderr) == (1, True)
    assert call("conf", "--dir", str(tmp_path)).stdout.strip() == str(tmp_path / "etc" / "slurm.conf")
