"""Exports that name hosts: what the refusal advises is a configuration that the command takes."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
from export_plans import whole_plan_of

from launcher.agent.launch import Launch, write_launch
from launcher.agent.settings import LaunchSettings
from launcher.cli import main
from launcher.config.reference import references
from launcher.planner import write_plan
from launcher.run.folder import RunFolder
from launcher.schema import to_plain
from launcher.ssh.hosts import parse_host
from launcher.ssh.settings import SshSettings

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["cluster=dgx_a100_80g", "cluster.num_nodes=2", "model=gpt3_1b3", "train.global_batch=64", "layout.dp=16"]
FIRST_LINES = {"hostfile": "node1 slots=8\nnode2 slots=8\n", "rankfile": "rank 0=node1 slot="}


@pytest.mark.parametrize("target", FIRST_LINES)
def test_the_advice_for_a_plan_without_hosts_is_followed_as_it_is_written(
    target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *WORDS, f"to={target}"]) == 2
    advice = re.search(
        r"add (launch=\S+ launch\S+) with a host for each node of the plan \(2\)", capsys.readouterr().err
    )
    assert advice
    assert main(["export", *WORDS, f"to={target}", *advice[1].split()]) == 0
    assert capsys.readouterr().out.startswith(FIRST_LINES[target])


def test_hosts_that_are_not_as_many_as_nodes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *WORDS, "to=hostfile", "launch=ssh", "launch.hosts=[a,b,c]"]) == 2
    assert "the plan has 2 nodes, and 3 hosts are named" in capsys.readouterr().err


def test_the_number_of_nodes_is_that_of_the_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in WORDS if "num_nodes" not in word]
    assert main(["export", *words, "to=hostfile", "launch=ssh", "launch.hosts=[me@a:8,b:8]"]) == 0
    assert capsys.readouterr().out == "a slots=8\nb slots=8\n"


def test_a_run_has_the_hosts_that_ssh_or_slurm_started_it_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, plan = RunFolder(tmp_path), whole_plan_of("zero3")
    write_plan(plan, folder.plan)
    ssh = to_plain(SshSettings(hosts=(parse_host("z"), parse_host("a"))))
    write_launch(Launch(settings=LaunchSettings(), work_dir=tmp_path, ssh=ssh), folder.launch)
    assert main(["export", str(tmp_path), "to=hostfile"]) == 0
    assert capsys.readouterr().out == "z slots=8\na slots=8\n"
    write_launch(Launch(settings=LaunchSettings(), work_dir=tmp_path), folder.launch)
    write_plan(replace(plan, hosts=("n2", "n1")), folder.plan_of_start)  # as a batch job does
    assert main(["export", str(tmp_path), "to=hostfile"]) == 0
    assert capsys.readouterr().out == "n2 slots=8\nn1 slots=8\n"


def test_every_key_that_a_text_of_ours_sets_is_one_that_is_read() -> None:
    """`launch.hosts=…` in a message, an example or a comment of a written file: its reader has that key."""
    known = {key.name for key in references()}
    groups = "|".join({name.partition(".")[0] for name in known if "." in name})
    setting = re.compile(rf"(?<![\w./])((?:{groups})(?:\.[a-z_]\w*)+)=")
    said = {
        (path.name, found)
        for path in (ROOT / "launcher").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for found in setting.findall(node.value)
    }
    assert len(said) > 100
    assert {(file, key) for file, key in said if key not in known} == set()
