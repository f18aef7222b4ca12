"""The commands that launch=torchrun prints start the job as they stand, in the order of the hosts."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main

HOSTS = ["launch=torchrun", "launch.hosts=[127.0.0.1,me@localhost]", "launch.nproc_per_node=1"]
SCRIPT = """
import os, sys, torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
print("rank", os.environ["RANK"], "node", os.environ["GROUP_RANK"], sys.argv[1:], flush=True)
dist.destroy_process_group()
"""


def test_a_recipe_is_not_torchrun_s_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *HOSTS]) == 2
    assert "give script=, module= or program=" in capsys.readouterr().err


@pytest.mark.slow
def test_the_printed_commands_start_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "two words.py"
    script.write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(["run", *HOSTS, f"script={script}", "--", "a b", "$(x)"]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("torchrun ")]
    assert [line for line in lines if line.startswith("# node")] == [
        "# node 0, on 127.0.0.1",
        "# node 1, on me@localhost",
    ]
    assert list(tmp_path.iterdir()) == [script]
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words],
            env={**os.environ, "LAUNCHER_SECRET": "hush", "OMP_NUM_THREADS": "1"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _, *words in reversed(commands)
    ]  # fmt: skip
    said = [job.communicate(timeout=240) for job in jobs]  # four imports of torch, on busy cores a minute
    assert [job.returncode for job in jobs] == [0, 0], said
    for node, (out, _) in zip((1, 0), said, strict=True):
        assert re.findall(r"rank .*", out) == [f"rank {node} node {node} ['a b', '$(x)']"]
