"""The hardware files: they compose, describe the machines that they name, and say where their numbers come from."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from launcher.cluster import Cluster
from launcher.config.compose import choices, load
from launcher.errors import InputError
from launcher.resources import resource

CLUSTERS = sorted(choices()["cluster"])
CPU_CLUSTERS = {"cpu", "testcluster"}
FOLDERS = ("gpu", "cluster", "model")
FILES = sorted(file for folder in FOLDERS for file in (resource("configs") / folder).glob("*.yaml"))


@cache
def cluster(name: str, *overrides: str) -> Cluster:
    return load([f"cluster={name}", *overrides]).job.cluster


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_file_composes_under_its_own_name(name: str) -> None:
    assert cluster(name).name == name


@pytest.mark.parametrize("name", CLUSTERS)
def test_domains_partition_the_gpus_of_a_node(name: str) -> None:
    node = cluster(name).node

    assert sorted(node.gpu_order) == list(range(node.num_gpus))


@pytest.mark.parametrize("name", [name for name in CLUSTERS if name not in CPU_CLUSTERS])
def test_nvlink_is_named_exactly_where_a_domain_of_gpus_has_it(name: str) -> None:
    node = cluster(name).node

    linked = node.nvlink != "none"
    assert linked == (max(len(domain) for domain in node.domains) > 1)
    assert not linked or node.gpu.nvlink_bytes_per_s > 0


# name: (GPUs to a node, sizes of its domains, NICs, Gb/s of one, memory of a GPU in MiB)
SHAPES = {
    "dgx_a100_80g": (8, [8], 8, 200, 81920),
    "dgx_a100_40g": (8, [8], 8, 200, 40960),
    "dgx1_v100": (8, [8], 4, 100, 32480),
    "hgx_a100_4gpu": (4, [4], 4, 200, 40960),
    "aws_p4d": (8, [8], 4, 100, 40960),
    "aws_p4de": (8, [8], 4, 100, 81920),
    "azure_ndv4_a100_80g": (8, [8], 8, 200, 81920),
    "gcp_a2_highgpu_8g": (8, [8], 1, 100, 40960),
    "gcp_a2_megagpu_16g": (16, [16], 1, 100, 40960),
    "a100_pcie_80g_bridged": (4, [2, 2], 1, 80, 81920),
    "a100_pcie_40g": (8, [1] * 8, 1, 200, 40960),
    "a100_mig_1g": (56, [1] * 56, 8, 200, 9728),
    "a100_mig_3g": (16, [1] * 16, 8, 200, 40192),
    "fly_a10": (1, [1], 0, 0, 23028),
    "fly_l40s": (1, [1], 0, 0, 46068),
    "fly_a100_40gb": (1, [1], 0, 0, 40960),
    "fly_a100_80gb": (1, [1], 0, 0, 81920),
    "dgx_h100": (8, [8], 8, 400, 81559),
    "selene": (8, [8], 8, 200, 81920),
    "juwels_booster": (4, [4], 4, 200, 40960),
    "perlmutter": (4, [4], 4, 200, 40960),
    "polaris": (4, [4], 2, 200, 40960),
    "gcp_a2_ultragpu_8g": (8, [8], 1, 100, 81920),
    "oci_bm_gpu4_8": (8, [8], 16, 100, 40960),
    "oci_bm_gpu_gm4_8": (8, [8], 16, 100, 81920),
    "dgx_station_a100": (4, [4], 0, 0, 81920),
    "leonardo": (4, [4], 4, 100, 65536),
    "jupiter_booster": (4, [4], 4, 200, 97871),
    "coreweave_a100_80g": (8, [8], 8, 200, 81920),
    "lambda_8x_a100_80g": (8, [8], 0, 0, 81920),
    "lambda_hyperplane_a100": (8, [8], 8, 200, 40960),
    "a100_pcie_10gpu": (10, [1] * 10, 1, 200, 40960),
    "dgx_h200": (8, [8], 8, 400, 143771),
    "dgx_b200": (8, [8], 8, 400, 183359),
    "gb200_nvl72": (4, [4], 4, 400, 189471),
}


def test_every_gpu_cluster_has_its_shape_checked() -> None:
    assert set(CLUSTERS) - CPU_CLUSTERS == set(SHAPES)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_cluster_has_the_published_shape(name: str) -> None:
    node = cluster(name).node

    found = (
        node.num_gpus,
        [len(d) for d in node.domains],
        node.num_nics,
        node.nic_gbps,
        node.gpu.memory_bytes // 2**20,
    )
    assert found == SHAPES[name]


@pytest.mark.parametrize("name", ["a100_mig_1g", "a100_mig_3g"])
def test_mig_slices_are_islands(name: str) -> None:
    found = cluster(name)

    assert found.node.num_gpus == 8 * found.node.slices_per_gpu
    assert found.max_ranks == 1
    assert found.node.gpu.nvlink_bytes_per_s == 0


def test_fewer_gpus_than_the_file_has_clip_the_domains() -> None:
    assert cluster("a100_pcie_80g_bridged", "cluster.node.num_gpus=3").node.domains == ((0, 1), (2,))


def test_cpu_cluster_counts_the_cores_of_this_machine() -> None:
    assert cluster("cpu").node.cores >= 1


def test_nodes_without_a_network_are_refused_with_the_keys_to_set() -> None:
    with pytest.raises(InputError, match=r"cluster\.node\.num_nics"):
        cluster("fly_a10", "cluster.num_nodes=2")


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_numbers_carry_a_source(file: Path) -> None:
    text = file.read_text()
    comments = " ".join(re.findall(r"#.*", text))

    assert re.search(r"https?://|\bours\b|counted on this machine|measured", comments), "no source for its numbers"
    for above, line in re.findall(r"((?:^#.*\n)*)^(price_per_.*)", text, flags=re.MULTILINE):
        assert re.search(r"USD.*(\b20\d\d\b|1/\d of)", above + line, re.DOTALL), f"price without date: {line}"


def test_one_domain_of_all_gpus_and_a_rail_to_each_nic_follow_the_node() -> None:
    whole, half = cluster("dgx_a100_80g"), cluster("dgx_a100_80g", "cluster.node.num_gpus=4", "cluster.node.num_nics=4")
    assert (whole.node.domains, whole.rails) == ((tuple(range(8)),), 8)
    assert (half.node.domains, half.rails) == (((0, 1, 2, 3),), 4)
    assert [cluster("azure_ndv4_a100_80g", "cluster.rails=4").rail(rank) for rank in range(8)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["cluster.node.domain_size=16"], r"domain_size=16 does not divide the 8 GPUs .* auto for one domain of all"),
        (["cluster.node.domain_size=3"], r"domain_size=3 does not divide the 8 GPUs"),
        (["cluster.rails=16"], r"cluster\.rails=16 does not divide the 8 NICs"),
        (["cluster.rails=3"], r"cluster\.rails=3 does not divide the 8 NICs .* auto for one rail to each NIC"),
        (["cluster.rails=8", "cluster.node.num_nics=4"], r"cluster\.rails=8 does not divide the 4 NICs"),
    ],
)
def test_domains_and_rails_that_a_node_cannot_have_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        cluster("dgx_a100_80g", *overrides)


def test_a_gpu_written_as_a_word_gets_the_line_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs" / "cluster"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("name: mine\nnode:\n  gpu: a100_sxm_80g\n  num_gpus: 8\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"gpu = 'a100_sxm_80g' must be a group .* `- /gpu@node.gpu: a100_sxm_80g`"
    ) as caught:
        cluster("mine")
    assert len(caught.value.problems) == 1
