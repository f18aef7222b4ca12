"""Clusters found out from texts: what is broken, mixed, cut or unequal is said, and is not taken for the shape."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.cluster import Cluster
from launcher.cluster.discover import ClusterFile, Text, discover, discover_from, texts_of_files
from launcher.cluster.discover.gpus import CARDS, card_of
from launcher.cluster.machine import Machine, Nic
from launcher.config.compose import load
from launcher.errors import InputError
from launcher.resources import resource
from tests.cluster import texts
from tests.cluster.test_discover import DGX, MLX, answers, composed, whole_gpus
from tests.cluster.test_recorded_texts import keys

SXM = "NVIDIA A100-SXM4-80GB"


def found(*given: str, name: str = "site") -> ClusterFile:
    """What texts of one node, or of the fabric, say."""
    return discover_from([Text("", f"text {index}", text) for index, text in enumerate(given)], name)


def matrix(*, without: tuple[int, ...] = (), pair: tuple[int, int] | None = None, thin: bool = False) -> str:
    """Eight GPUs behind NVSwitch, with links that are broken."""
    rows = texts.uniform(8, "NV12")
    for a in range(8):
        for b in range(8):
            if a != b and (a in without or b in without or pair in ((a, b), (b, a))):
                rows[a][b] = "NV11" if thin else "SYS"
    return texts.topo(rows)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (matrix(without=(3,)), ["GPU3 has no NVLink to any other GPU"]),
        (matrix(without=(3, 5)), ["GPU3 has no NVLink to any other GPU", "GPU5 has no NVLink to any other GPU"]),
        (matrix(pair=(2, 6)), ["GPU2 and GPU6 have no NVLink"]),
        (matrix(pair=(2, 6), thin=True), ["GPU2 and GPU6 have 11 NVLinks where others have 12"]),
        (matrix(), []),
    ],
)
def test_a_broken_nvlink_is_said_and_is_not_the_shape(text: str, said: list[str]) -> None:
    file = found(whole_gpus(8, SXM), text)
    assert {key: keys(file.text)[key] for key in ("num_gpus", "domain_size", "nvlink")} == {
        "num_gpus": "8", "domain_size": "8", "nvlink": "nvswitch",
    }  # fmt: skip
    assert [note for note in file.notes if "NVLink" in note] == said


def test_gpus_without_nvlink_by_design_are_no_broken_links() -> None:
    pairs = found(whole_gpus(4, "NVIDIA A100 80GB PCIe"), texts.topo(texts.blocks([0, 1], [2], [3], link="NV12")))
    assert keys(pairs.text)["domains"] == "[[0, 1], [2], [3]]"
    assert not [note for note in pairs.notes if "NVLink" in note]


@pytest.mark.parametrize("row", range(1, 9))
def test_a_matrix_that_lacks_a_row_is_read_by_the_others(row: int) -> None:
    lines = texts.topo(texts.uniform(8, "NV12")).splitlines()
    file = found("\n".join(line for index, line in enumerate(lines) if index != row))
    assert keys(file.text)["domain_size"] == "8"
    assert any(f"the rows of GPU{row - 1} are missing" in note for note in file.notes)


def test_a_matrix_that_lacks_two_rows_that_only_they_could_say_is_refused() -> None:
    lines = texts.topo(texts.uniform(8, "NV12")).splitlines()
    with pytest.raises(InputError, match="the row of GPU3, GPU4 is missing"):
        found("\n".join(line for index, line in enumerate(lines) if index not in (4, 5)))


@pytest.mark.parametrize(
    "line", ["GPU0 is warm today", "GPU0", "GPU0: NVIDIA A100 ok", "GPU0 GPU1 GPU2 GPU3", "gpu01:~$ nvidia-smi topo -m"]
)
def test_lines_before_the_heading_are_no_heading(line: str) -> None:
    file = found(f"{line}\n{texts.topo(texts.uniform(8, 'NV12'))}")
    assert keys(file.text)["num_gpus"] == "8"


def test_glued_cells_are_the_links_that_they_are_made_of() -> None:
    rows = [
        [*row, *(["PXB", "SYS", "SYS", "PXB"] if i < 4 else ["SYS", "PXB", "PXB", "SYS"])]
        for i, row in enumerate(texts.uniform(8, "NV12"))
    ]
    text = texts.topo(rows, [nic.name for nic in MLX])
    glued = (
        text.replace("SYS\tSYS\tPXB", "SYSSYS\tPXB")
        .replace("NV12\tNV12\tNV12", "NV12NV12\tNV12")
        .replace("SYS\t0-23", "SYS0-23")
    )
    assert glued.count("SYSSYS") == 4
    file = discover(
        "site", run=answers({"nvidia-smi -L": whole_gpus(8, SXM), "nvidia-smi topo -m": glued}), machine=DGX
    )
    assert keys(file.text)["num_nics"] == "4"  # those of later columns are no storage adapters
    assert keys(file.text)["domain_size"] == "8"
    assert any("glued together" in note for note in file.notes)


def nics(*kinds: tuple[int, str, float]) -> tuple[Nic, ...]:
    names = iter(range(100))
    return tuple(
        Nic(f"mlx5_{next(names)}", fabric, gbps, active=True) for count, fabric, gbps in kinds for _ in range(count)
    )


@pytest.mark.parametrize(
    ("kinds", "expected", "left"),
    [
        (
            ((4, "infiniband", 200.0), (1, "roce", 1.0)),
            ("4", "200", "infiniband"),
            r"mlx5_4 \(roce at 1 Gb/s\): left out",
        ),
        (((1, "roce", 25.0), (4, "infiniband", 200.0)), ("4", "200", "infiniband"), r"mlx5_0 \(roce at 25 Gb/s\)"),
        (((2, "infiniband", 100.0), (2, "infiniband", 200.0)), ("2", "200", "infiniband"), "mlx5_0, mlx5_1"),
        (((8, "roce", 100.0), (2, "infiniband", 200.0)), ("8", "100", "roce"), "mlx5_8, mlx5_9"),
    ],
)
def test_adapters_of_the_kind_that_carries_most_count(
    kinds: tuple[tuple[int, str, float], ...], expected: tuple[str, str, str], left: str
) -> None:
    machine = Machine(cores=128, memory_bytes=2**40, sockets=2, nics=nics(*kinds), interfaces=())
    given = {"nvidia-smi -L": whole_gpus(8, SXM), "nvidia-smi topo -m": texts.topo(texts.uniform(8, "NV12"))}
    file = discover("site", run=answers(given), machine=machine)
    values = keys(file.text)
    assert (values["num_nics"], values["nic_gbps"], values["fabric"]) == expected
    assert re.search(left, "\n".join(file.notes))


@pytest.mark.parametrize(
    ("product", "kind"),
    [
        (SXM, "nvswitch"),
        ("NVIDIA H100 80GB HBM3", "nvswitch"),
        ("NVIDIA A100 80GB PCIe", "bridge"),
        ("NVIDIA H100 NVL", "bridge"),
    ],
)
def test_one_pair_is_recognised_by_its_product_name(product: str, kind: str) -> None:
    """Two GPUs of a VM see each other through all their links, and so do bridged cards."""
    file = found(whole_gpus(2, product), texts.topo(texts.uniform(2, "NV12")))
    assert (keys(file.text)["nvlink"], keys(file.text)["domain_size"]) == (kind, "2")


def test_whole_gpus_next_to_slices_are_described_and_the_slices_are_noted() -> None:
    slices = "".join(f"  MIG 1g.10gb     Device  {i}: (UUID: MIG-{i})\n" for i in range(7))
    listed = whole_gpus(7, SXM) + f"GPU 7: {SXM} (UUID: GPU-7)\n{slices}"
    file = found(listed, texts.topo(texts.uniform(8, "NV12")))
    assert (keys(file.text)["num_gpus"], keys(file.text)["domain_size"], keys(file.text)["gpu"]) == (
        "7",
        "7",
        "a100_sxm_80g",
    )
    assert any("there are also 7 1g.10gb" in note for note in file.notes)


def test_of_gpus_that_are_cut_differently_the_profile_of_most_is_described() -> None:
    mixed = texts.MIG_LIST.replace("3g.40gb     Device  1", "1g.10gb     Device  1", 1)
    file = found(mixed)
    assert (keys(file.text)["gpu"], keys(file.text)["num_gpus"], keys(file.text)["slices_per_gpu"]) == (
        "a100_mig_3g",
        "3",
        "2",
    )
    assert any("this file describes the 3 3g.40gb; there are also 1 1g.10gb" in note for note in file.notes)


def slurm_node(name: str, memory: int, gpus: str = "gpu:a100:8") -> str:
    cpus = "CPUTot=256 Sockets=2 CoresPerSocket=64 ThreadsPerCore=2"
    return f"NodeName={name} {cpus} RealMemory={memory} Gres={gpus} State=IDLE\n"


def test_nodes_whose_memory_differs_a_little_are_of_one_kind() -> None:
    nodes = "".join(slurm_node(f"n{i}", 1031700 + 13 * i) for i in range(8)) + slurm_node("fat1", 2063000)
    values = keys(found(nodes).text)
    assert (values["num_nodes"], values["cores"], values["host_memory_gib"]) == ("8", "128", f"{1031700 / 1024:.1f}")


@pytest.mark.parametrize(
    ("sizes", "listed"),
    [
        ((18, 18, 18, 10, 3), True), ((6, 3, 3, 2, 2), True), ((2, 16), True), ((4, 4), False), ((1, 1, 1), False),
        ((18, 18, 7), False),
    ],
)  # fmt: skip
def test_unequal_leaves_are_listed_and_planned_with(sizes: tuple[int, ...], listed: bool) -> None:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    text = "".join(
        f"SwitchName=s{i} Nodes=n[{a}-{a + size - 1}]\n" for i, (a, size) in enumerate(zip(starts, sizes, strict=True))
    )
    file = found(text)
    values = keys(file.text)
    assert values["num_nodes"] == str(sum(sizes))
    assert values.get("leaf_sizes") == (str(list(sizes)) if listed else None)
    assert values.get("nodes_per_leaf") == (None if listed else str(sizes[0]))
    assert any("unequal" in note for note in file.notes) == listed
    words = [
        f"cluster.{key}={values[key].replace(' ', '')}" for key in ("leaf_sizes", "nodes_per_leaf") if key in values
    ]
    cluster = load(
        ["cluster=dgx_a100_80g", f"cluster.num_nodes={sum(sizes)}", "cluster.nodes_per_leaf=0", *words]
    ).job.cluster
    assert [cluster.leaf(node) for node in range(sum(sizes))] == [
        leaf for leaf, size in enumerate(sizes) for _ in range(size)
    ]


def test_leaves_that_miss_a_node_are_not_listed() -> None:
    text = "SwitchName=a Nodes=n[0-2]\nSwitchName=b Nodes=n[3-8]\n" + "".join(
        slurm_node(f"n{i}", 1000) for i in range(10)
    )
    file = found(text)
    assert keys(file.text)["nodes_per_leaf"] == "6" and "leaf_sizes" not in keys(file.text)
    assert any("(6, 3): 6 is taken" in note for note in file.notes)


GUIDS = f"SwitchName=sw0 Nodes=0x{0:08x}00000000,0x{1:08x}00000000\nSwitchName=sw1 Nodes=0x{2:08x}00000000\n"


def test_port_guids_are_no_nodes_until_the_fabric_says_whose_they_are() -> None:
    alone = found(GUIDS)
    assert "nodes_per_leaf" not in keys(alone.text)
    assert any("names port GUIDs, not nodes: give `ibnetdiscover` too" in note for note in alone.notes)
    known = keys(found(GUIDS, texts.ibnetdiscover(3)).text)
    assert (known["num_nodes"], known["nodes_per_leaf"]) == ("3", "2")


def test_a_fabric_says_leaves_rails_rates_and_taper() -> None:
    values = keys(found(texts.ibnetdiscover(8, rails=2, per_leaf=4)).text)
    wanted = {
        "num_nodes": "8", "nodes_per_leaf": "4", "rails": "2", "oversubscription": "2", "fabric": "infiniband",
        "num_nics": "2", "nic_gbps": "200",
    }  # fmt: skip
    assert {key: values.get(key) for key in wanted} == wanted


def test_sources_that_disagree_are_said() -> None:
    file = found(
        whole_gpus(7, SXM),
        texts.topo(texts.uniform(8, "NV12")),
        slurm_node("n1", 1000000),
        "Name=gpu File=/dev/nvidia[0-3]\n",
    )
    notes = "\n".join(file.notes)
    assert "sources disagree: text 0 shows 7 GPUs, text 1 shows 8 GPUs" in notes
    assert "sources disagree: text 2 shows 8 GPUs a node, text 3 4" in notes
    other = found(whole_gpus(8, SXM), texts.LSPCI)
    assert "text 0 shows A100-SXM4-80GB, text 1 GA100 [A100 SXM4 40GB]" in "\n".join(other.notes)


def test_logs_and_pci_listings_say_the_card_and_lost_lanes() -> None:
    log = found(texts.smi_log(8, lanes=8))
    assert (keys(log.text)["gpu"], keys(log.text)["num_gpus"]) == ("a100_sxm_80g", "8")
    assert any("GPU 00000000:0e:00.0 has 8 of its 16 PCIe lanes" in note for note in log.notes)
    listing = found(texts.LSPCI)
    assert (keys(listing.text)["gpu"], keys(listing.text)["num_gpus"]) == ("a100_sxm_40g", "2")
    assert any(
        "ConnectX-6] ) has 8" in note or "ConnectX-6]) has 8 of its 16 PCIe lanes" in note for note in listing.notes
    )


def test_the_odd_one_of_several_nodes_is_named(tmp_path: Path) -> None:
    for node in range(5):
        text = matrix(without=(3,)) if node == 4 else matrix()
        (tmp_path / f"n{node}.topo.txt").write_text(text)
        (tmp_path / f"n{node}.list.txt").write_text(whole_gpus(7 if node == 2 else 8, SXM))
    file = discover_from(texts_of_files([str(tmp_path)]), "site")
    values, notes = keys(file.text), "\n".join(file.notes)
    assert (values["num_nodes"], values["num_gpus"], values["domain_size"]) == ("5", "8", "8")
    assert "n4: GPU3 has no NVLink to any other GPU" in notes
    assert "n2: sources disagree: n2.list.txt shows 7 GPUs, n2.topo.txt shows 8 GPUs" in notes


@pytest.mark.parametrize(
    ("second", "names"),
    [(("mlx5_0", "mlx5_1"), '["mlx5_0", "mlx5_1"]'), (("mlx5_0", "mlx5_2"), None)],
    ids=["the same", "others"],
)
def test_adapters_are_written_by_name_where_all_nodes_call_them_so(
    tmp_path: Path, second: tuple[str, str], names: str | None
) -> None:
    rows = [[*row, "PXB", "PXB"] for row in texts.uniform(8, "NV12")]
    for node, adapters in enumerate((("mlx5_0", "mlx5_1"), second)):
        (tmp_path / f"n{node}.txt").write_text(texts.topo(rows, adapters))
    file = discover_from(texts_of_files([str(tmp_path)]), "site")
    assert (keys(file.text)["num_nics"], keys(file.text).get("nic_names")) == ("2", names)
    assert any("other names on other nodes" in note for note in file.notes) == (names is None)


@pytest.mark.parametrize(
    "several",
    [
        lambda a, b: "".join(
            f"{host}: {line}\n" for host, text in (("n1", a), ("n2", b)) for line in text.splitlines()
        ),
        lambda a, b: f"==> logs/n1.txt <==\n{a}\n==> logs/n2.txt <==\n{b}",
        lambda a, b: f"---------------\nn1\n---------------\n{a}---------------\nn2\n---------------\n{b}",
    ],
    ids=["pdsh", "tail", "clush -b"],
)
def test_several_nodes_of_one_file_are_distinguished(several: object, tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text(several(whole_gpus(8, SXM), whole_gpus(6, SXM)))  # type: ignore[operator]
    read = texts_of_files([str(tmp_path / "all.txt")])
    assert [text.node for text in read] == ["n1", "n2"]
    assert "the nodes differ: n1 has 8 GPUs; n2 has 6 GPUs" in "\n".join(discover_from(read, "site").notes)


def test_nodes_with_the_same_output_are_folded_by_clush(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text(f"---------------\nn[1-3]\n---------------\n{whole_gpus(8, SXM)}")
    assert keys(discover_from(texts_of_files([str(tmp_path)]), "site").text)["num_nodes"] == "3"


def test_files_of_different_kinds_are_of_one_node(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(whole_gpus(8, SXM))
    (tmp_path / "b.txt").write_text(matrix())
    values = keys(discover_from(texts_of_files([str(tmp_path)]), "site").text)
    assert (values["num_nodes"], values["num_gpus"], values["nvlink"]) == ("1", "8", "nvswitch")


@pytest.mark.parametrize(
    ("text", "words"),
    [("hello\n", "in no format that is known here"), ("", "in no format"), ("GPU0\tX\tNV12\n", "no heading line")],
)
def test_a_file_that_says_nothing_is_refused_by_its_name(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(text)
    with pytest.raises(InputError, match=f"notes.txt.*{words}"):
        discover_from(texts_of_files([str(tmp_path / "notes.txt")]), "site")


def test_every_key_of_a_found_file_can_be_overridden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_here: Cluster = composed(found(whole_gpus(8, SXM), matrix()), tmp_path, monkeypatch)
    assert found_here.num_nodes == 1
    changes = [
        "cluster.num_nodes=4", "cluster.node.num_nics=8", "cluster.node.nic_gbps=200", "cluster.fabric=infiniband",
        "cluster.nodes_per_leaf=2", "cluster.rails=8", "cluster.oversubscription=2",
        "cluster.node.busbw_gbytes_per_s.leaf=90", "cluster.node.gpu.memory_mib=40960",
    ]  # fmt: skip
    cluster = load(["cluster=site", *changes]).job.cluster
    assert (cluster.num_nodes, cluster.node.num_nics, cluster.rails) == (4, 8, 8)


def test_the_command_reads_files_and_prints_the_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(whole_gpus(8, SXM))
    (tmp_path / "b.txt").write_text(matrix())
    monkeypatch.chdir(tmp_path)
    assert main(["discover", "from=a.txt,b.txt", "name=site"]) == 0
    assert (tmp_path / "configs/cluster/site.yaml").is_file()
    assert main(["discover", "from=a.txt"]) == 2
    assert "give the cluster a name" in capsys.readouterr().err
    assert main(["discover", "collector=true"]) == 0
    assert capsys.readouterr().out.startswith("sh -c '")


def test_every_card_of_configs_gpu_is_known_by_name_and_pci_id() -> None:
    entries = {path.stem for path in (resource("configs") / "gpu").glob("*.yaml")}
    assert {entry for entry in entries if "_mig_" not in entry} - {"cpu"} <= set(CARDS)
    for entry in entries & set(CARDS):
        ids = [word for word in CARDS[entry] if re.fullmatch("[0-9a-f]{4}", word)]
        names = [word for word in CARDS[entry] if word not in ids]
        assert names and ids
        for name in names:
            assert card_of(f"NVIDIA {name}").entry == entry
            assert card_of(f"NVIDIA Corporation GA100 [{name}]").entry == entry
        assert {card_of(device_id=f"10de:{number}").entry for number in ids} == {entry}
    words = [word.lower() for known in CARDS.values() for word in known]
    assert len(words) == len(set(words))
    assert card_of("NVIDIA Quantum 9").entry is None
    assert card_of("A30\x00\x1b[31m").name.isprintable()  # it is shown in messages


def test_a_file_whose_gpus_are_unknown_says_what_to_fill_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs" / "cluster").mkdir(parents=True)
    (tmp_path / "configs" / "cluster" / "site.yaml").write_text(found(matrix()).text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"does not say what its GPUs are \(/gpu@node.gpu: \?\?\?\): name an entry"):
        load(["cluster=site"])
