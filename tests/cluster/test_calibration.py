"""From what nccl-tests and recipes measured to a cluster file that the planner believes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.cluster.calibration import curve_of, line_of
from launcher.cluster.readers_nccl_tests import read_nccl_tests
from launcher.commands.measuring import steps_for
from launcher.config.compose import load
from launcher.cost.collectives import collective_s
from launcher.cost.constants import DEFAULT
from launcher.cost.network import Group, fabric_of
from launcher.errors import InputError
from launcher.planner import read_plan

# stas00/ml-engineering, network/README.md (CC BY-SA 4.0): one node of 8 × A100 SXM, all_reduce_perf.
RECORDED = """\
       32768          8192     float     sum      -1    43.83    0.75    1.31      0    43.83    0.75    1.31      0
     1048576        262144     float     sum      -1    101.9   10.29   18.00      0    101.9   10.29   18.00      0
    16777216       4194304     float     sum      -1    276.6   60.66  106.16      0    276.6   60.66  106.16      0
    67108864      16777216     float     sum      -1    684.6   98.02  171.54      0    684.6   98.02  171.54      0
  1073741824     268435456     float     sum      -1   8203.9  130.88  229.04      0   8203.9  130.88  229.04      0
 17179869184    4294967296     float     sum      -1   127997  134.22  234.89      0   127997  134.22  234.89      0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 105.217
"""
BUSBW = {32768: 1.31, 1048576: 18.0, 16777216: 106.16, 67108864: 171.54, 1073741824: 229.04, 17179869184: 234.89}
# The head that NVIDIA/nccl-tests prints (src/util.cu, writeDeviceReport and writeResultHeader), of two nodes.
HEAD = """\
# nccl-tests version 2.17.1 nccl-headers=22703 nccl-library=22703
# Collective test starting: {name}
# nThread 1 nGpus 1 minBytes 8 maxBytes 134217728 step: 2(factor) warmup iters: 1 iters: 20 agg iters: 1 validation: 1
#
# Using devices
{devices}
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)
"""


def devices(hosts: list[str]) -> str:
    line = "#  Rank {:2} Group  0 Pid {:6} on {:>10} device {:2} [0000:07:00] NVIDIA A100-SXM4-80GB"
    return "\n".join(line.format(rank, 4000 + rank, host, rank % 8) for rank, host in enumerate(hosts))


def calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, *words: str) -> int:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.txt").write_text(text)
    return main(["calibrate", "out.txt", "cluster=dgx_a100_80g", *words])


def test_a_recorded_curve_is_what_the_planner_then_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert calibrated(tmp_path, monkeypatch, RECORDED, "operation=all_reduce", "name=site") == 0

    fabric = fabric_of(load(["cluster=site"]).job.cluster, DEFAULT)
    for size, busbw in BUSBW.items():
        said = size / collective_s(fabric, Group(8, 8, 8, 1), "all_reduce", size) / 1e9 * 1.75
        assert said == pytest.approx(busbw, rel=0.03)


def test_a_plan_says_what_was_measured_and_is_surer_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrated(tmp_path, monkeypatch, RECORDED, "operation=all_reduce") == 0
    widths = []
    for cluster in ("dgx_a100_80g", "dgx_a100_80g_measured"):
        capsys.readouterr()
        assert main(["plan", f"cluster={cluster}", "model=gpt3_1b3", "layout.tp=8", "top=1", "output=json"]) == 0
        best = json.loads(capsys.readouterr().out)["plans"][0]
        low, high = best["estimate"]["step_time_interval_s"] if "estimate" in best else best["step_time_interval_s"]
        widths.append(high / low)
        why = " ".join(best["why"])
    assert widths[1] < widths[0]
    assert "all_reduce of 8 over nvlink" in why
    assert "launcher calibrate out.txt" in why


def test_measured_groups_speak_for_those_that_were_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = RECORDED.replace("8203.9", "16407.8")  # half the rate
    assert calibrated(tmp_path, monkeypatch, slow, "operation=all_reduce", "name=site") == 0
    fast = fabric_of(load(["cluster=dgx_a100_80g"]).job.cluster, DEFAULT)
    measured = fabric_of(load(["cluster=site"]).job.cluster, DEFAULT)

    for operation, group in (("all_reduce", Group(4, 4, 4, 1)), ("all_gather", Group(8, 8, 8, 1))):
        before, after = (collective_s(fabric, group, operation, 2**30) for fabric in (fast, measured))
        assert after == pytest.approx(2 * before, rel=0.01)


def test_hosts_and_the_collective_are_read_from_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEAD.format(name="all_gather_perf", devices=devices(["node1"] * 8 + ["node2"] * 8))
    row = "1073741824 16777216 float none -1"
    text += f"{row} 6100.0 176.02 165.02 0 6200.0 173.18 162.36 0\n"
    [found] = read_nccl_tests(text, "text")

    assert (found.operation, found.per_node, len(found.hosts), found.library) == ("all_gather", 8, 16, "22703")
    assert found.points == ((1073741824, pytest.approx(6200.0e-6)),)  # the slower form
    assert calibrated(tmp_path, monkeypatch, text, "name=site", "cluster.num_nodes=2") == 0
    [curve] = load(["cluster=site"]).job.cluster.measured.collectives
    assert (curve.operation, curve.link, curve.ranks, curve.per_node) == ("all_gather", "leaf", 16, 8)


# Lines of public posts: times of 10 ms and more have no decimals, old versions no root, some programs no redop.
LINES = [
    ("  8589934592    2147483648   float   sum      -1    47523  180.71  270.53      0    47234  181.81  272.15      0",
     8589934592, 47523e-6, 270.53),
    ("  2147483648     536870912   float   sum      -1   756857    2.84    2.84      0   757311    2.84    2.84      0",
     2147483648, 757311e-6, 2.84),
    ("  8589934592      67108864   float  none      -1   165769   51.82   50.20      0   164522   52.21   50.58    N/A",
     8589934592, 165769e-6, 50.2),
    ("    33554432       8388608   float     sum    19902    1.69    2.53  2e-07    19898    1.69    2.53  2e-07",
     33554432, 19902e-6, 2.53),
    ("     1048576         65536   float    150.2    6.98    6.11  0e+00    149.1    7.03    6.15  0e+00",
     1048576, 150.2e-6, 6.11),
    ("     1048576        262144     float     sum     28.06   37.36   37.36       0", 1048576, 28.06e-6, 37.36),
]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "0: ", "[1,0]<stdout>:"])
@pytest.mark.parametrize(("line", "size", "seconds", "busbw"), LINES)
def test_a_line_is_read_in_the_form_of_every_version(
    line: str, size: int, seconds: float, busbw: float, prefix: str
) -> None:
    [run] = read_nccl_tests(f"{prefix}#       size\n{prefix}{line}\n", "it")
    assert run.points == ((size, pytest.approx(seconds)),)
    assert run.busbw == (busbw,)


def test_numerical_errors_of_old_versions_are_no_wrong_elements() -> None:
    head = (
        "#       size         count    type   redop     time   algbw   busbw  error     time   algbw   busbw  error\n"
    )
    [good] = read_nccl_tests(f"{head}{LINES[3][0]}\n# Out of bounds values : 0 OK\n", "it")
    [bad] = read_nccl_tests(f"{head}{LINES[3][0]}\n# Out of bounds values : 2 FAILED\n", "it")
    assert (good.wrong, bad.wrong) == (0, 2)


def test_json_says_the_same_as_the_text() -> None:
    row = {"size": 1048576, "count": 262144, "type": "float", "redop": "sum", "root": "-1"}
    row |= {
        "out_of_place": {"time": 101.9, "alg_bw": 10.29, "bus_bw": 18.0, "nwrong": 0.0},
        "in_place": {"time": 101.5, "alg_bw": 10.33, "bus_bw": 18.08, "nwrong": 0.0},
    }
    devices = [{"rank": rank, "hostname": "node1", "device": rank} for rank in range(8)]
    document = {
        "version": 3, "start_time": "2026-07-09 16:03:21", "args": ["./build/all_reduce_perf", "-J", "x.json"],
        "nccl_version": 22703, "config": {"iterations": 20, "devices": devices}, "results": [row],
    }  # fmt: skip
    [found] = read_nccl_tests(json.dumps(document), "x.json")

    assert (found.operation, found.per_node, found.date) == ("all_reduce", 8, "2026-07-09")
    assert found.points == ((1048576, pytest.approx(101.9e-6)),)


def test_what_an_in_place_form_lacks_is_read_as_printed() -> None:
    text = "# alltoall_perf\n  1048576  32768  float  none  -1  120.0  8.7  7.6  0  118.0  8.9  7.8  N/A\n"
    [found] = read_nccl_tests(text, "text")

    assert (found.operation, found.points) == ("all_to_all", ((1048576, pytest.approx(120e-6)),))


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        (lambda text: text.replace("8203.9", "3203.9"), ["operation=all_reduce"], "NVLinks, which carry 300 GB/s"),
        (lambda text: text.replace("43.83", "0.04"), ["operation=all_reduce"], "light needs longer"),
        (lambda text: text, [], "say it with operation=all_reduce"),
        (lambda text: text.replace("229.04      0", "229.04     12"), ["operation=all_reduce"], "wrong elements"),
        (lambda text: "no results", [], "no line of results"),
        (lambda text: '{"results": 3}', [], "is not JSON as nccl-tests writes it"),
        (lambda text: text, ["operation=gossip"], "operation=gossip"),
        (
            lambda text: HEAD.format(name="all_reduce_perf", devices=devices(["node1"] * 16)) + text,
            [],
            "16 ranks on one host",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    change: Callable[[str], str],
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert calibrated(tmp_path, monkeypatch, change(RECORDED), *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "configs").exists()


@pytest.mark.parametrize("name", ["", "a b", "../site", "a'b", "a,b", "site.yaml"])
def test_a_name_that_no_word_of_a_command_could_be_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrated(tmp_path, monkeypatch, RECORDED, "operation=all_reduce", f"name={name}") == 2
    assert "cannot name a cluster file" in capsys.readouterr().err
    assert not (tmp_path / "configs").exists()


def test_a_file_that_somebody_else_wrote_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "configs" / "cluster" / "site.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("defaults: [dgx_a100_80g, _self_]\nname: site\n")
    words = ("operation=all_reduce", "name=site")

    assert calibrated(tmp_path, monkeypatch, RECORDED, *words) == 2
    assert "force=true" in capsys.readouterr().err
    assert calibrated(tmp_path, monkeypatch, RECORDED, *words, "force=true") == 0
    assert calibrated(tmp_path, monkeypatch, RECORDED, *words) == 0  # its own file it may replace


def test_a_line_through_a_curve_is_its_latency_and_rate() -> None:
    curve = curve_of([(size, 20e-6 + size / 50e9) for size in (1024, 2**20, 2**30)], operation="all_reduce",
                     link="leaf", ranks=16, per_node=8)  # fmt: skip
    latency, rate, error = line_of(curve)

    assert (latency, rate, error) == (pytest.approx(20e-6), pytest.approx(50e9), pytest.approx(0, abs=1e-6))


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ({"operation": "gossip"}, "gossip"),
        ({"link": "wire"}, "wire"),
        ({"ranks": 0}, "above 0"),
        ({"bytes": [2, 1], "time_us": [1, 2]}, "rise"),
        ({"bytes": [1, 2]}, "as many time_us as bytes"),
        ({"rate": 3}, "has rate"),
    ],
)
def test_a_curve_that_is_none_is_refused_by_its_entry(curve: dict[str, Any], said: str) -> None:
    given = {"operation": "all_reduce", "link": "nvlink", "ranks": 8, "bytes": [1024], "time_us": [90]} | curve
    text = json.dumps(given).replace('"', "")
    with pytest.raises(InputError, match=rf"cluster\.measured\.collectives.*{said}"):
        load(["cluster=dgx_a100_80g", f"cluster.measured.collectives=[{text}]"])


def test_cpu_ranks_are_measured_as_a_whole_and_by_halves_that_still_share_cores(tmp_path: Path) -> None:
    """Each trial is a plan for as many ranks as its run has; what grows with depth and width is among them."""
    words = ["cluster=cpu", "cluster.node.num_gpus=4", "cluster.node.cores=1"]
    runs = list(steps_for(load(words).job.cluster, words, tmp_path))
    tried = {
        run.addition: [word for word in run.overrides if "num_gpus" in word] for run in runs if run.recipe == "tune"
    }
    assert tried == {"": ["cluster.node.num_gpus=4"], "-half": ["cluster.node.num_gpus=2"]}

    plans = {
        name: [read_plan(file) for file in sorted((tmp_path / name).glob("*"))] for name in ("trials", "trials-half")
    }
    assert {plan.layout.world_size for plan in plans["trials"]} == {4}
    assert {plan.layout.world_size for plan in plans["trials-half"]} == {2}
    shapes = [(plan.job.model.layers, plan.job.model.hidden) for plan in plans["trials"]]
    assert {(12, 128), (4, 256), (4, 128)} == set(shapes)
    assert {plan.layout.tp for plan in plans["trials-half"]} == {1, 2}  # two ranks have no group of four

    alone = [*words[:2], "cluster.node.cores=2"]  # two ranks on two cores are no job that shares them
    found = steps_for(load(alone).job.cluster, alone, tmp_path / "alone")
    assert [run.addition for run in found if run.recipe == "tune"] == [""]
