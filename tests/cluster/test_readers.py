"""What is read out of nvidia-smi, NCCL and Slurm texts, and what is said of texts that are broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cluster.hostlist import compress_hostlist, expand_hostlist
from launcher.cluster.machine import Nic, read_collected
from launcher.cluster.nvlink import counts_of_file, nvlink_shape
from launcher.cluster.readers_ib import read_ibnetdiscover
from launcher.cluster.readers_mig import read_mig_parted, read_mig_placements
from launcher.cluster.readers_nccl import read_nccl_topology
from launcher.cluster.readers_pci import read_lspci
from launcher.cluster.readers_slurm import read_gpu_gres, read_gres, read_slurm_nodes, read_slurm_topology
from launcher.cluster.readers_smi import (
    read_list,
    read_mig_instances,
    read_mig_profiles,
    read_query,
    uniform_profile,
)
from launcher.cluster.readers_smi_log import read_query_log
from launcher.cluster.readers_topo import nvlink_domains, nvlink_kind, read_topo
from launcher.errors import InputError
from tests.cluster import texts

EIGHT = ((0, 1, 2, 3, 4, 5, 6, 7),)
CUBE_MESH = [  # a DGX-1's hybrid cube mesh, in part
    ["X", "NV1", "NV2", "SYS"],
    ["NV1", "X", "SYS", "NV2"],
    ["NV2", "SYS", "X", "NV1"],
    ["SYS", "NV2", "NV1", "X"],
]


@pytest.mark.parametrize(
    ("matrix", "domains", "kind"),
    [
        pytest.param(texts.uniform(8, "NV12"), EIGHT, "nvswitch", id="eight SXM GPUs behind NVSwitch"),
        pytest.param(texts.uniform(4, "NV4"), ((0, 1, 2, 3),), "direct", id="four SXM GPUs wired directly"),
        pytest.param(texts.blocks([0, 1], [2, 3], link="NV12"), ((0, 1), (2, 3)), "unknown", id="two pairs"),
        pytest.param(texts.uniform(4, "PHB"), ((0,), (1,), (2,), (3,)), "none", id="PCIe only"),
        pytest.param(CUBE_MESH, None, "direct", id="hybrid mesh has no any-to-any domains"),
        pytest.param([["X"]], ((0,),), "none", id="one GPU"),
    ],
)
@pytest.mark.parametrize("tabs", [True, False], ids=["tabs", "spaces"])
def test_nvlink_domains_are_read_from_the_matrix(
    matrix: list[list[str]], domains: object, kind: str, tabs: bool
) -> None:
    topology = read_topo(texts.topo(matrix, tabs=tabs))

    assert (nvlink_domains(topology), nvlink_kind(topology)) == (domains, kind)


NEAR = [
    ["X", "NV12", "PXB", "SYS"],
    ["NV12", "X", "NODE", "SYS"],
    ["PXB", "NODE", "X", "SYS"],
    ["SYS", "SYS", "SYS", "X"],
]


def test_near_nics_are_those_with_the_shortest_pcie_path() -> None:
    topology = read_topo(texts.topo(NEAR, ["mlx5_0", "mlx5_1"]))

    assert [topology.near_nics(gpu) for gpu in (0, 1)] == [("mlx5_0",), ("mlx5_0",)]


def test_nic_rows_that_were_cut_off_are_reported_and_not_needed() -> None:
    topology = read_topo(texts.topo(NEAR[:2], ["mlx5_0", "mlx5_1"]))

    assert topology.near_nics(0) == ("mlx5_0",)
    assert any("mlx5_0, mlx5_1 are missing" in note for note in topology.notes)


def test_mangled_cells_become_unknown_with_one_note() -> None:
    matrix = [[*row[:3], "SY0-115"] if i < 2 else row for i, row in enumerate(NEAR)]
    topology = read_topo(texts.topo(matrix, ["mlx5_0", "mlx5_1"], tails=["0\t\tN/A"] * 2))

    assert nvlink_domains(topology) == ((0, 1),)
    assert topology.links["GPU0"]["mlx5_1"] == "SYS"  # from the NIC's own row
    assert topology.cpu_affinity == ("unknown", "unknown")
    assert len(topology.notes) == 1


def test_affinity_is_read_and_unknown_where_its_cell_is_empty() -> None:
    topology = read_topo(texts.topo(texts.uniform(2, "NV12"), tails=["0-31,64-95\t0\tN/A", "\t1\tN/A"]))

    assert (topology.cpu_affinity, topology.numa) == (("0-31,64-95", "unknown"), ("0", "unknown"))


def test_mig_slices_are_listed_per_gpu() -> None:
    gpus = read_list(texts.MIG_LIST)

    assert [(gpu.name, len(gpu.slices)) for gpu in gpus] == [("NVIDIA A100-SXM4-80GB", 2)] * 2
    assert uniform_profile(gpus) == ("3g.40gb", 2)


def test_gpus_cut_differently_have_no_uniform_profile() -> None:
    mixed = texts.MIG_LIST.replace("3g.40gb     Device  1", "1g.10gb     Device  1", 1)

    assert uniform_profile(read_list(mixed)) is None


def test_mig_profiles_and_instances_are_read() -> None:
    profile = read_mig_profiles(texts.MIG_PROFILES)[1]
    instance = read_mig_instances(texts.MIG_INSTANCES)[1]

    assert (profile.name, profile.instances, profile.num_sms, profile.peer_to_peer) == ("3g.40gb", 2, 42, False)
    assert profile.memory_bytes == 39.25 * 2**30
    assert (instance.profile, instance.start, instance.size) == ("3g.40gb", 4, 4)


def test_states_are_read_and_what_the_driver_does_not_say_is_none() -> None:
    first, last = read_query(texts.query(2, ecc="[N/A]", remap="[Not Supported]", throttle="0x0000000000000008"))

    assert (first.memory_bytes, first.ecc_uncorrected, first.remap_failed) == (80 * 2**30, 0, False)
    assert (last.ecc_uncorrected, last.remap_failed, last.throttle_reasons) == (None, None, 8)


def test_nccl_topology_gives_gpus_their_nics() -> None:
    topology = read_nccl_topology(texts.NCCL_XML)

    near = [[nic.busid for nic in topology.near_nics(gpu)] for gpu in topology.gpus]
    assert near == [["0000:03:00.0"]] * 2 + [["0000:06:00.0"]] * 2
    assert [gpu.numa for gpu in topology.gpus] == [0, 0, 1, 1]
    assert topology.notes == ()


@pytest.mark.parametrize(
    ("before", "after", "note"),
    [
        ('<pci busid="0000:02:00.0" class="0x030200"', '<pci busid="0000:01:00.0" class="0x030200"', "more than once"),
        (' class="0x020700"', "", "say no class"),
        (
            '0x030200" link_speed="16 GT/s" link_width="16"/>',
            '0x030200"><gpu dev="0"><nvlink target="0000:01:00.0" count="12"/></gpu></pci>',
            "unknown",
        ),
    ],
)
def test_nccl_topology_reports_what_it_leaves_open(before: str, after: str, note: str) -> None:
    topology = read_nccl_topology(texts.NCCL_XML.replace(before, after))

    assert any(note in said for said in topology.notes)


@pytest.mark.parametrize("text", [texts.SLURM_TREE, texts.SLURM_SHOWN])
def test_slurm_leaves_and_their_parent_are_read(text: str) -> None:
    topology = read_slurm_topology(text)

    assert topology.kind == "tree"
    assert (topology.leaf_of("node02"), topology.leaf_of("node04")) == ("leaf1", "leaf2")
    assert topology.parents == {"leaf1": "spine", "leaf2": "spine"}


def test_slurm_blocks_are_read() -> None:
    topology = read_slurm_topology("BlockName=b1 Nodes=n[1-18]\nBlockName=b2 Nodes=n[19-36]\nBlockSizes=18\n")

    assert (topology.kind, topology.leaf_of("n19"), topology.nodes_per_leaf) == ("block", "b2", 18)


def test_a_node_under_two_leaves_has_no_known_leaf() -> None:
    topology = read_slurm_topology("SwitchName=s1 Nodes=n[1-4]\nSwitchName=s2 Nodes=n[4-8]\n")

    assert topology.leaf_of("n4") is None
    assert topology.notes == ("node n4 is under s1 and s2: its leaf is unknown",)


def test_slurm_nodes_are_read_with_their_gpus() -> None:
    (nodes,) = read_slurm_nodes(texts.SLURM_NODE)

    assert nodes.names == ("dgx1", "dgx2", "dgx3", "dgx4")
    assert (nodes.num_gpus, nodes.gpu_type, nodes.memory_mib, nodes.state) == (8, "a100", 2000000, "idle")
    assert nodes.sockets * nodes.cores_per_socket == 128


@pytest.mark.parametrize(
    ("gres", "expected"),
    [
        ("gpu:a100:8(S:0-1)", (8, "a100")),
        ("gpu:8", (8, None)),
        ("(null)", (0, None)),
        ("", (0, None)),
        ("shard:4,gpu:a100_1g.10gb:7,gpu:h100:2", (9, "h100")),
    ],
)
def test_gpu_gres_is_read(gres: str, expected: tuple[int, str | None]) -> None:
    assert read_gpu_gres(gres) == expected


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("node1", ["node1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("dgx[001-002,010],login", ["dgx001", "dgx002", "dgx010", "login"]),
        ("r[1-2]n[1-2]-ib", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("", []),
    ],
)
def test_node_lists_expand(expression: str, names: list[str]) -> None:
    assert list(expand_hostlist(expression)) == names


@pytest.mark.parametrize("expression", ["n[1-", "n]1[", "n[a-b]", "n[3-1]", "n[1-99999999]", "n1 n2", "n[[1]]"])
def test_malformed_node_lists_give_one_message(expression: str) -> None:
    with pytest.raises(InputError) as raised:
        expand_hostlist(expression)

    assert len(raised.value.problems) == 1


@given(st.lists(st.from_regex(r"[a-z]{1,3}-?[0-9]{0,4}", fullmatch=True), max_size=30))
def test_compressed_node_lists_expand_to_the_same_names(names: list[str]) -> None:
    assert list(expand_hostlist(compress_hostlist(names))) == names


def test_consecutive_names_fold() -> None:
    assert compress_hostlist(["dgx08", "dgx09", "dgx10", "dgx12", "login"]) == "dgx[08-10,12],login"


def test_slurm_s_yaml_is_read_as_its_conf() -> None:
    topology = read_slurm_topology(texts.SLURM_YAML)
    assert topology.parents == {"s1": "spine", "s2": "spine"}
    assert (topology.leaf_of("node02"), topology.leaf_of("node04")) == ("s1", "s2")


def test_gres_lists_gpus_by_nodes_and_type() -> None:
    [gpus] = read_gres(texts.GRES_CONF)
    assert (gpus.nodes, gpus.type, gpus.count) == (("n1", "n2", "n3", "n4"), "a100", 8)
    assert gpus.cpus == ("0-31",) * 4 + ("32-63",) * 4


def test_what_the_collector_printed_elsewhere_is_a_machine() -> None:
    machine = read_collected(texts.COLLECTED)
    assert (machine.host, machine.cores, machine.sockets) == ("n7", 2, 2)
    assert machine.memory_bytes == 1056210304 * 1024
    assert machine.nics == (
        Nic("mlx5_0", "infiniband", 200.0, active=True, busid="0000:12:00.0"),
        Nic("mlx5_1", "roce", 25.0, active=True),
    )


def test_mig_parted_and_placements_are_read() -> None:
    assert [place.starts for place in read_mig_placements(texts.MIG_PLACES)] == [tuple(range(7)), (0, 4), (0,)]
    [cut] = read_mig_parted(texts.MIG_PARTED)["mixed"]
    assert (cut.gpus, cut.enabled, dict(cut.slices), cut.cards) == (
        (0, 1), True, {"1g.10gb": 4, "3g.40gb": 1}, ("0x20B210DE",),
    )  # fmt: skip


def test_nvlinks_of_an_nccl_topology_are_read() -> None:
    link = '<gpu dev="{}"><nvlink target="{}" count="4" tclass="{}"/></gpu></pci>'
    switched = texts.NCCL_XML
    for number in (1, 2, 4, 5):
        gpu = f'<pci busid="0000:0{number}:00.0" class="0x030200" link_speed="16 GT/s" link_width="16"'
        switched = switched.replace(f"{gpu}/>", f"{gpu}>{link.format(number, '0000:c8:00.0', '0x068000')}")
    shape = nvlink_shape(counts_of_file(read_nccl_topology(switched)) or [])
    assert (shape.domains, shape.kind) == (((0, 1, 2, 3),), "nvswitch")
    assert counts_of_file(read_nccl_topology(texts.NCCL_XML)) is None


BROKEN: list[tuple[Callable[[str], object], str]] = [
    (read_topo, "no matrix here"),
    (read_topo, "\n".join(texts.topo(texts.uniform(4, "NV4")).splitlines()[:3])),
    (read_list, "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."),
    (read_list, ""),
    (read_mig_profiles, "No MIG-enabled devices found."),
    (read_mig_instances, "No GPU instances"[:2]),
    (read_query, "Field x is not a valid field to query."),
    (read_nccl_topology, "<system><cpu numaid='0'>"),
    (read_nccl_topology, "<graphs version='1'></graphs>"),
    (read_nccl_topology, "<html></html>"),
    (read_nccl_topology, "<!DOCTYPE x [<!ENTITY a 'b'>]><system></system>"),
    (read_nccl_topology, "<system><cpu numaid='zero'/></system>"),
    (read_slurm_topology, "No topology information available"),
    (read_slurm_topology, "SwitchName=s1 Nodes=n[1-"),
    (read_slurm_topology, "- topology: x\n  flat: true\n"),
    (read_slurm_topology, "- topology: &a x\n  tree: *a\n"),
    (read_gres, "Name=shard Count=4"),
    (read_gres, "{% if x %}\nName=gpu\n{% endif %}"),
    (read_mig_parted, "mig-configs: [1]"),
    (read_mig_parted, 'mig-configs: {a: [{mig-devices: {"9x": 1}}]}'),
    (read_mig_parted, "mig-configs: {a: [{devices: [-1]}]}"),
    (read_mig_placements, "No MIG-enabled devices found."),
    (read_query_log, "NVIDIA-SMI has failed"),
    (read_lspci, "bash: lspci: command not found"),
    (read_ibnetdiscover, "ibwarn: mad_rpc_open_port: can't open UMAD port"),
    (read_collected, "host:n1"),
    (read_slurm_nodes, "slurm_load_node error: Unable to contact slurm controller"),
]


@pytest.mark.parametrize(("read", "text"), BROKEN)
def test_other_texts_give_one_clear_message(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(InputError) as raised:
        read(text)

    assert len(raised.value.problems) == 1
