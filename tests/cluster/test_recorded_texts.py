"""Texts of real machines, each read and held against what a person finds in it.

We may not redistribute the texts: the tests look for the folder shared/data/topo next to this checkout, or above it.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from launcher.cluster.discover import discover_from, texts_of_files
from launcher.cluster.machine import COLLECTOR, read_collected, read_machine
from launcher.cluster.readers_ib import read_ibnetdiscover
from launcher.cluster.readers_mig import read_mig_parted, read_mig_placements
from launcher.cluster.readers_nccl import read_nccl_topology
from launcher.cluster.readers_slurm import read_gres, read_slurm_nodes, read_slurm_topology
from launcher.cluster.readers_smi import read_list, read_mig_instances, read_mig_profiles
from launcher.cluster.readers_topo import read_topo
from launcher.errors import InputError

FOLDER = next((p / "shared/data/topo" for p in Path(__file__).parents if (p / "shared/data/topo").is_dir()), None)
needs_texts = pytest.mark.skipif(FOLDER is None, reason="there is no folder shared/data/topo here or above")

NVSWITCH = {"num_gpus": "8", "domain_size": "8", "nvlink": "nvswitch"}
PAIRS = {
    "num_gpus": "4",
    "domain_size": "2",
    "nvlink": "???",
}  # bridges, or boards with one pair: the text does not say
DIRECT = {"num_gpus": "4", "domain_size": "4", "nvlink": "direct"}
CUBE_MESH = (
    "[[0, 1, 1, 2, 2, 0, 0, 0], [1, 0, 2, 1, 0, 2, 0, 0], [1, 2, 0, 2, 0, 0, 1, 0], [2, 1, 2, 0, 0, 0, 0, 1], "
    "[2, 0, 0, 0, 0, 1, 1, 2], [0, 2, 0, 0, 1, 0, 2, 1], [0, 0, 1, 0, 1, 2, 0, 2], [0, 0, 0, 1, 2, 1, 2, 0]]"
)
UNLINKED: dict[str, str | None] = {"domains": "???", "nvlink": "???"}
NAMELESS: dict[str, str | None] = {"nic_names": None, "interface": None}  # labels and bus ids are no kernel's names


def adapters(*numbers: int) -> str:
    return json.dumps([f"mlx5_{number}" for number in numbers])


# File → keys of the cluster file, and words that its notes must have.
EXPECTED: dict[str, tuple[Mapping[str, str | None], str]] = {
    "smi_4gpu_partial_nvlink.txt": (PAIRS, "NVLink is not plain"),
    "smi_4gpu_phb_nonvlink.txt": ({"num_gpus": "4", "domain_size": "1", "nvlink": "none"}, "what the GPUs are"),
    "smi_a100_40gb_vm_8nic_mangled.txt": (
        NVSWITCH | {"num_nics": "8", "nic_gbps": "???", "nic_names": adapters(*range(8))},
        "8 rows are mangled",
    ),
    "smi_a100_8gpu_nonic_stas.txt": (NVSWITCH, ""),
    "smi_a100pcie_4gpu_dual_xeon8470.txt": (PAIRS, ""),
    "smi_aws_p4d_8gpu.txt": (NVSWITCH, ""),
    "smi_azure_nc96ads_4xa100pcie.txt": (PAIRS, ""),
    "smi_dgx1_v100_cubemesh.txt": (
        {
            "num_gpus": "8",
            "num_nics": "4",
            "nvlink": "direct",
            "nvlinks": CUBE_MESH,
            "nic_names": adapters(*range(4)),
        },
        "what the GPUs are",
    ),
    "smi_dgx_a100_8gpu_10nic.txt": (NVSWITCH | {"num_nics": "8", "nic_names": adapters(0, 1, 2, 3, 4, 5, 8, 9)}, ""),
    "smi_dgx_a100_8gpu_12mlx5.txt": (
        NVSWITCH | {"num_nics": "8", "nic_names": adapters(0, 1, 2, 3, 6, 7, 8, 9)},
        "rows of mlx5_0, mlx5_1, mlx5_2, mlx5_3 and 8 more",
    ),
    "smi_h100_8gpu_ht_stas.txt": (NVSWITCH, ""),
    "smi_h100_8gpu_nonic_stas.txt": (NVSWITCH, ""),
    "smi_hgx_a100_8gpu_1nic_nps4.txt": (
        NVSWITCH | {"num_nics": "1", "nic_names": adapters(0)},
        "rows of mlx5_0 are missing",
    ),
    "smi_hgx_a100_8gpu_2nic.txt": (NVSWITCH | {"num_nics": "2", "nic_names": adapters(0, 1)}, ""),
    "smi_leonardo_4xa100_nv4.txt": (DIRECT | {"num_nics": "4"} | NAMELESS, ""),  # its legend does not say what NIC0 is
    "smi_slingshot_4xa100_nv4.txt": (DIRECT, ""),
    "mig_L_single_7x1g5gb.txt": (
        {"num_gpus": "7", "domain_size": "1", "slices_per_gpu": "7"},
        "1g.5gb slice of A100-SXM4-40GB",
    ),
    "mig_lgi_a100_40gb_3211.txt": ({"num_gpus": "1", "slices_per_gpu": "1"}, "also 2 1g.5gb; 1 2g.10gb"),
    "mig_lgip_a100_40gb.txt": ({"num_gpus": "???"}, "how GPUs can be cut"),
    "mig_lgip_a100_80gb.txt": ({"num_gpus": "???"}, "how GPUs can be cut"),
    "mig_lgipp_a100_40gb.txt": ({"num_gpus": "???"}, "how GPUs can be cut"),
    "mig_parted_config-default.yaml": ({"num_gpus": "???"}, "names 81 ways to cut GPUs"),
    "mig_parted_examples_config.yaml": ({"num_gpus": "???"}, "names 9 ways to cut GPUs"),
    "xml_aws_g5_48xl.xml": ({"num_gpus": "???"}, "9 PCI entries say no class"),
    "xml_aws_p4d_24xl.xml": (
        UNLINKED | {"gpu": "a100_sxm_40g", "num_gpus": "8", "num_nics": "4"} | NAMELESS,
        "NVLink is not plain",
    ),
    "xml_azure_ncv4_a100pcie.xml": (
        UNLINKED
        | {
            "gpu": "a100_pcie_80g",
            "num_gpus": "4",
            "num_nics": "1",
            "nic_gbps": "100",
            "nic_names": None,
            "interface": '"eth0"',
        },
        "point back at their own GPU",
    ),
    "xml_azure_ndv2_v100.xml": (UNLINKED | {"num_gpus": "8", "num_nics": "1"}, ""),
    "xml_azure_ndv4_a100.xml": (UNLINKED | {"num_gpus": "8", "num_nics": "8"}, ""),
    "xml_azure_ndv5_h100.xml": (UNLINKED | {"num_gpus": "8", "num_nics": "8"}, ""),
    "xml_mlperf21_dell_xe8545_4xa100.xml": (
        UNLINKED | {"num_gpus": "4", "num_nics": "1"},
        "0000:ba:00.0 is there more than once",
    ),
    "xml_mlperf21_dgxa100_nic_affinity.xml": (UNLINKED | {"num_gpus": "8", "num_nics": "8"}, ""),
    "xml_mlperf21_fujitsu.xml": (UNLINKED | {"num_gpus": "8", "num_nics": "8"} | NAMELESS, ""),
    "xml_nemo_csp_aws.xml": ({"num_gpus": "???"}, "32 PCI entries say no class"),
    "xml_nemo_csp_azure.xml": (UNLINKED | {"num_gpus": "8", "num_nics": "8"}, ""),
    "slurm_conf_dgx2_superpod_circe.conf": (
        {"num_nodes": "98", "num_gpus": "???", "cores": "48", "scheduler": "slurm"},
        "",
    ),
    "slurm_conf_dgx4.conf": ({"num_nodes": "4", "num_gpus": "8", "cores": "40", "host_memory_gib": "500.0"}, ""),
    "slurm_gres_a100_8node_manual.conf": ({"num_gpus": "8"}, ""),
    "slurm_gres_dgx_cpus.conf": ({"num_gpus": "8"}, ""),
    "slurm_gres_single8gpu.conf": ({"num_gpus": "8"}, ""),
    "slurm_topology_azure_block.conf": ({"num_nodes": "72", "nodes_per_leaf": "18"}, ""),
    "slurm_topology_azure_hpcbench.conf": (
        {"num_nodes": "16", "leaf_sizes": "[3, 6, 3, 2, 2]"},
        r"(6, 3, 3, 2, 2): jobs fill them",
    ),
    "slurm_topology_dgx2_superpod_circe.conf": ({"nodes_per_leaf": "18"}, "node circe-n051 is under s2 and s4"),
    "ib_ibnetdiscover_dgx_superpod.out": (
        {
            "num_nodes": "109",
            "leaf_sizes": "[11, 18, 17, 18, 15, 16, 14]",
            "rails": "4",
            "fabric": "infiniband",
            "num_nics": "4",
            "nic_gbps": "400",
            "nic_names": adapters(0, 1, 4, 5),
        },
        "unequal numbers of nodes",
    ),
}
REFUSED = {
    "mig_profiles_a100_go-nvml.go.txt": "in no format that is known here",
    "slurm_gres_deepops_template.conf": "is a template",
    "xml_azure_ncv4_graph.xml": "is an NCCL search graph",
}


def keys(text: str) -> dict[str, str]:
    """The keys of a cluster file without their comments, whatever group they are in."""
    found = dict(re.findall(r"^\s*(?:- /)?([\w@.]+): ([^\n#]+?)(?: #.*)?$", text, flags=re.MULTILINE))
    return found | {"gpu": found.get("gpu@node.gpu", "")}


def recorded(name: str) -> str:
    assert FOLDER is not None
    return (FOLDER / name).read_text()


@needs_texts
def test_every_recorded_text_has_an_expectation() -> None:
    assert FOLDER is not None
    assert {path.name for path in FOLDER.iterdir() if path.suffix != ".source"} == set(EXPECTED) | set(REFUSED)


@needs_texts
@pytest.mark.parametrize("name", EXPECTED)
def test_a_recorded_text_says_what_a_person_finds_in_it(name: str) -> None:
    assert FOLDER is not None
    file = discover_from(texts_of_files([str(FOLDER / name)]), "site")
    wanted, note = EXPECTED[name]
    found = keys(file.text)
    assert {key: found.get(key) for key in wanted} == wanted
    assert note in "\n".join(file.notes)


@needs_texts
@pytest.mark.parametrize("name", REFUSED)
def test_a_text_that_describes_no_cluster_is_refused(name: str) -> None:
    assert FOLDER is not None
    with pytest.raises(InputError, match=REFUSED[name]):
        discover_from(texts_of_files([str(FOLDER / name)]), "site")


@needs_texts
def test_affinities_of_recorded_matrices_are_read() -> None:
    nps4 = read_topo(recorded("smi_dgx_a100_8gpu_12mlx5.txt"))
    assert nps4.numa == ("3", "3", "1", "1", "7", "7", "5", "5")
    assert nps4.near_nics(6) == ("mlx5_8", "mlx5_9")
    assert nps4.cpu_affinity[0] == "48-63,176-191"
    crossed = read_topo(recorded("smi_dgx_a100_8gpu_10nic.txt"))
    assert [crossed.near_nics(gpu) for gpu in (0, 4, 6)] == [("NIC2", "NIC3"), ("NIC8", "NIC9"), ("NIC4", "NIC5")]
    assert read_topo(recorded("smi_slingshot_4xa100_nv4.txt")).numa == ("3", "2", "1", "0")
    mangled = read_topo(recorded("smi_a100_40gb_vm_8nic_mangled.txt"))
    assert mangled.links["GPU0"]["NIC7"] == "PHB"  # its own row says it
    assert set(mangled.numa) == {"unknown"}
    mesh = read_topo(recorded("smi_dgx1_v100_cubemesh.txt"))
    assert [mesh.nvlinks(0, other) for other in range(1, 8)] == [1, 1, 2, 2, 0, 0, 0]


@needs_texts
def test_recorded_mig_texts_are_read_to_the_number() -> None:
    [gpu] = read_list(recorded("mig_L_single_7x1g5gb.txt"))
    assert (gpu.name, [part.profile for part in gpu.slices]) == ("NVIDIA A100-SXM4-40GB", ["1g.5gb"] * 7)
    instances = read_mig_instances(recorded("mig_lgi_a100_40gb_3211.txt"))
    assert [(part.profile, part.start, part.size) for part in instances] == [
        ("1g.5gb", 0, 1), ("1g.5gb", 1, 1), ("2g.10gb", 2, 2), ("3g.20gb", 4, 4),
    ]  # fmt: skip
    profiles = read_mig_profiles(recorded("mig_lgip_a100_80gb.txt"))
    assert [(each.name, each.instances, each.num_sms) for each in profiles] == [
        ("1g.10gb", 7, 14), ("1g.10gb+me", 1, 14), ("2g.20gb", 3, 28), ("3g.40gb", 2, 42), ("4g.40gb", 1, 56),
        ("7g.80gb", 1, 98),
    ]  # fmt: skip
    places = {
        place.profile_id: (place.starts, place.size)
        for place in read_mig_placements(recorded("mig_lgipp_a100_40gb.txt"))
    }
    assert places[15] == ((0, 2, 4, 6), 2) and places[9] == ((0, 4), 4) and places[0] == ((0,), 8)
    custom = read_mig_parted(recorded("mig_parted_examples_config.yaml"))["custom-config"]
    assert [(part.gpus, part.enabled, dict(part.slices)) for part in custom] == [
        ((0, 1, 2, 3), False, {}), ((4,), True, {"1g.5gb": 7}), ((5,), True, {"2g.10gb": 3}),
        ((6,), True, {"3g.20gb": 2}), ((7,), True, {"1g.5gb": 2, "2g.10gb": 1, "3g.20gb": 1}),
    ]  # fmt: skip


@needs_texts
def test_recorded_nccl_topologies_give_gpus_their_nics_and_numa_nodes() -> None:
    dgx = read_nccl_topology(recorded("xml_mlperf21_dgxa100_nic_affinity.xml"))
    near = {gpu.busid: [nic.busid for nic in dgx.near_nics(gpu)] for gpu in dgx.gpus}
    assert near["0000:07:00.0"] == ["0000:12:00.0"] and near["0000:bd:00.0"] == ["0000:ba:00.0"]
    assert [gpu.numa for gpu in dgx.gpus] == [3, 3, 1, 1, 7, 7, 5, 5]
    p4d = read_nccl_topology(recorded("xml_aws_p4d_24xl.xml"))
    assert {gpu.device_id for gpu in p4d.gpus} == {"10de:20b0"}
    assert [nic.busid for nic in p4d.near_nics(p4d.gpus[7])] == ["0000:a0:1b.0"]
    assert read_nccl_topology(recorded("xml_azure_ncv4_a100pcie.xml")).num_numa == 4


@needs_texts
def test_recorded_slurm_texts_are_read_to_the_node() -> None:
    dgx = read_slurm_nodes(recorded("slurm_conf_dgx4.conf"))
    assert [(record.names, record.num_gpus, record.memory_mib) for record in dgx] == [
        (("master",), 0, 256000), (("dgx1", "dgx2", "dgx3", "dgx4"), 8, 512000),
    ]  # fmt: skip
    azure = read_slurm_topology(recorded("slurm_topology_azure_hpcbench.conf"))
    assert azure.leaf_of("hpcbench-hpc-49") == "sw01" and azure.parents["sw04"] == "sw05"
    blocks = read_slurm_topology(recorded("slurm_topology_azure_block.conf"))
    assert blocks.kind == "block" and blocks.leaf_of("hpcbench-hpc-72") == "block_5e797fc6-0f46-421a-8724-0e102c0f722a"
    [gpus] = read_gres(recorded("slurm_gres_dgx_cpus.conf"))
    assert gpus.cpus[:5] == ("0-9", "10-19", "20-29", "30-39", "0-9")
    [typed] = read_gres(recorded("slurm_gres_a100_8node_manual.conf"))
    assert (typed.type, typed.count, typed.nodes) == ("A100", 8, ())
    [named] = read_gres(recorded("slurm_gres_single8gpu.conf"))
    assert (named.nodes, named.count) == (("bld",), 8)


@needs_texts
def test_two_of_slurm_s_texts_that_name_different_nodes_disagree() -> None:
    assert FOLDER is not None
    files = [str(FOLDER / f"slurm_{kind}_dgx2_superpod_circe.conf") for kind in ("conf", "topology")]
    notes = "\n".join(discover_from(texts_of_files(files), "site").notes)
    assert "names no leaf for circe-n[019-020,059,081-098]" in notes
    assert "names n[019-020], which are none of the 98 nodes" in notes


@needs_texts
def test_the_recorded_fabric_is_rail_optimised() -> None:
    fabric = read_ibnetdiscover(recorded("ib_ibnetdiscover_dgx_superpod.out"))
    assert (len(fabric.names), fabric.rails, fabric.oversubscription) == (40, 4, 1.0)
    leaves = {fabric.names[switch].split(":")[0].split(";")[1] for switch in fabric.hosts["a08-p1-dgx-04-c01"]}
    assert leaves == {"A09-P1-IBLEAF-01-04", "A09-P1-IBLEAF-02-04", "A09-P1-IBLEAF-03-04", "A09-P1-IBLEAF-04-04"}
    assert {port.gbps for port in fabric.ports} == {400}


def test_what_the_collector_prints_here_is_read_as_this_machine() -> None:
    printed = subprocess.run(["sh", "-c", COLLECTOR], capture_output=True, text=True, check=True).stdout
    collected, here = read_collected(printed), read_machine()
    assert (collected.memory_bytes, collected.interfaces, collected.nics) == (
        here.memory_bytes,
        here.interfaces,
        here.nics,
    )
    assert collected.ethernet == here.ethernet
    assert collected.sockets == here.sockets and collected.cores >= 1
    assert collected.host
