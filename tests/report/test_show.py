"""`launcher show`: what is drawn is what the planner assumes, and where each number comes from."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config.compose import choices, load
from launcher.cost.constants import DEFAULT
from launcher.cost.network import fabric_of

SVG = "{http://www.w3.org/2000/svg}"
WIDTH = 80


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["show", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("cluster", choices()["cluster"])
def test_every_cluster_is_drawn_in_80_columns_and_as_a_picture(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = shown(capsys, f"cluster={cluster}")
    assert max(map(len, text.splitlines())) <= WIDTH

    shown(capsys, f"cluster={cluster}", "out=picture.svg")
    root = ET.parse(tmp_path / "picture.svg").getroot()
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    for box in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(box.attrib.get(name, 0)) for name in ("x", "y", "width", "height"))
        assert x >= 0 and x + w <= width and y >= 0 and y + h <= height
    for words in root.iter(f"{SVG}text"):
        assert float(words.attrib["y"]) < height
    node = load([f"cluster={cluster}"]).job.cluster.node
    names = [words.text or "" for words in root.iter(f"{SVG}text")]
    assert sum(name.startswith(("GPU", "rank", "slice")) for name in names) == node.num_gpus


def test_numbers_are_those_of_the_planner_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("cluster=dgx_a100_80g", "cluster.num_nodes=40", "cluster.oversubscription=2", "cluster.node.nic_gbps=100")
    links = {link["name"]: link for link in json.loads(shown(capsys, *words, "output=json"))["links"]}
    fabric = fabric_of(load(words).job.cluster, DEFAULT)

    assert links["NVLink"]["nameplate"] == 300e9
    assert "gpu/a100_sxm_80g.yaml" in links["NVLink"]["sources"][0]
    assert links["NICs"]["nameplate"] == 100e9
    assert links["NICs"]["reached"] == pytest.approx(fabric.node_bytes_per_s / DEFAULT.inter_node_fraction)
    assert links["spine"]["nameplate"] == 50e9
    assert "nic_gbps: the command line" in links["NICs"]["sources"]


def test_what_was_measured_says_when_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    curve = "{operation: all_reduce, link: nvlink, ranks: 8, bytes: [8, 1073741824], time_us: [30, 9000]}"
    words = ("cluster=dgx_a100_80g", f"cluster.measured.collectives=[{curve}]", "cluster.measured.hosts=[node7]")
    [link] = [e for e in json.loads(shown(capsys, *words, "output=json"))["links"] if e["name"] == "NVLink"]

    assert "measured, node7: all_reduce" in link["sources"]
    assert link["latency_s"] == pytest.approx(30e-6)
    assert link["reached"] == pytest.approx(2**30 / 9000e-6 * 1.75)


def test_a_plan_is_drawn_on_its_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pins = ("layout.tp=4", "layout.pp=2", "layout.dp=2", "cluster.num_nodes=2", "save=plan.json", "top=1")
    assert main(["plan", "cluster=dgx_a100_80g", "model=gpt3_1b3", *pins]) == 0
    capsys.readouterr()

    text = shown(capsys, "plan=plan.json")
    assert "2 nodes of 8" in text
    assert "0 1 2 3" in text and "NICs and a leaf" in text
    axes = {axis["axis"]: axis for axis in json.loads(shown(capsys, "plan=plan.json", "output=json"))["axes"]}
    assert axes["tp"]["link"] == "NVLink" and axes["tp"]["reached"] > 5 * axes["dp"]["reached"] > 0
    shown(capsys, "plan=plan.json", "out=plan.svg")
    assert "r5 tp1 pp1 dp0" in (tmp_path / "plan.svg").read_text()


def test_a_picture_of_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "out=cluster.png"]) == 2
    assert "FILE.svg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gcp_a2_megagpu_16g", ("the same NVSwitch", "NIC0 100G", "NIC0 again")),
        ("a100_mig_3g", ("slice 0", "slice 15")),
        ("dgx_a100_80g", ("NIC7 200G", "NVSwitch, 300 GB/s a GPU")),
    ],
)
def test_a_picture_draws_each_switch_and_nic_once(
    name: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.svg"
    shown(capsys, f"cluster={name}", f"out={file}")
    texts = [element.text for element in ET.parse(file).iter("{http://www.w3.org/2000/svg}text")]

    for word in words:
        assert texts.count(word) == 1


def test_numa_nodes_and_the_nic_of_each_gpu_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "cluster=polaris", "cluster.num_nodes=2")
    assert "  ·NIC1    ·NIC1    ·NIC0    ·NIC0\n  ·NUMA3   ·NUMA2   ·NUMA1   ·NUMA0\n" in text
    file = tmp_path / "cluster.svg"
    shown(capsys, "cluster=polaris", f"out={file}")
    words = [element.text for element in ET.parse(file).iter(f"{SVG}text")]
    assert [word for word in words if word and word.startswith("NUMA")] == ["NUMA 3", "NUMA 2", "NUMA 1", "NUMA 0"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("cluster=gb200_nvl72", "cluster.num_nodes=36"), ["NVSwitch, one domain of 18 nodes", "NVSwitch of 18 nodes"]),
        (
            ("cluster=selene", "cluster.num_nodes=300", "cluster.core_oversubscription=2"),
            ["core over 3 pods of 140 nodes, tapered 2 : 1", "core   a node, pod to pod       100      94"],
        ),
        (
            ("cluster=oci_bm_gpu4_8", "cluster.num_nodes=9", "cluster.leaf_sizes=[4,3,2]"),
            ["leaf 2: node7 node8", "2 NICs"],
        ),
        (("cluster=a100_pcie_10gpu",), ["GPU8     GPU9", "1 NIC of 200 Gb/s"]),
    ],
)  # fmt: skip
def test_every_shape_is_drawn_as_it_is(
    words: tuple[str, ...], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, *words)
    assert [word for word in said if word not in text] == []
    assert max(map(len, text.splitlines())) <= WIDTH
    shown(capsys, *words, f"out={tmp_path / 'cluster.svg'}")
