"""`launcher check` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.preflight.bandwidth import bandwidth_findings
from launcher.preflight.findings import Level, hosts_to_exclude
from launcher.run.result import BandwidthResult, NodeRates, write_result


def test_a_sound_node_ends_with_0(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["check", "cluster.node.num_gpus=1", f"run_dir={tmp_path}"]) == 0
    assert "run folder" in capsys.readouterr().out


def test_a_node_that_is_not_what_the_file_says_ends_with_1_and_is_excluded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi, whatever machine this is
    assert main(["check", "cluster=dgx_a100_80g", f"run_dir={tmp_path}", "output=json"]) == 1

    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["worst"] == "problem"
    assert {"level": "problem", "check": "gpu"}.items() <= document["findings"][0].items()
    assert f"--exclude={','.join(document['exclude'])}" in said.err


def test_what_the_bandwidth_recipe_found_is_a_finding_for_each_node(tmp_path: Path) -> None:
    nodes = tuple(NodeRates(f"n{i}", i, 230.0, 180.0) for i in (1, 2))
    result = BandwidthResult("bandwidth", 2**28, nodes, {"n2": ["between 90 of 180 GB/s"]}, ("n2",))
    file = tmp_path / "result"
    write_result(result.to_dict(), file, short=result.short())
    good, bad = bandwidth_findings(file, code=1, log=tmp_path)
    assert (good.level, good.message) == (Level.OK, "inside 230 GB/s, between 180 GB/s")
    assert (hosts_to_exclude([good, bad]), bad.message) == (("n2",), "slow: between 90 of 180 GB/s")


@pytest.mark.parametrize(("code", "how"), [(None, "did not end within 60 s"), (3, "failed with exit code 3")])
def test_a_bandwidth_check_without_a_result_blames_no_node(tmp_path: Path, code: int | None, how: str) -> None:
    [finding] = bandwidth_findings(tmp_path / "result", code=code, log=tmp_path)
    assert (finding.level, finding.host, how in finding.message) == (Level.UNKNOWN, "", True)
