"""Texts as people paste them, and the output of more versions and tools: forms that were found in public posts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.cluster.discover import discover_from, texts_of_files
from launcher.cluster.discover.gpus import card_of
from tests.cluster import texts
from tests.cluster.test_discover_from import found
from tests.cluster.test_recorded_texts import keys

SXM = "NVIDIA A100-SXM4-40GB"
BOARD = texts.topo(texts.uniform(4, "NV4"), tails=[f"{16 * i}-{16 * i + 15}\t{3 - i}\tN/A" for i in range(4)])
DIRECT = {"num_gpus": "4", "domain_size": "4", "nvlink": "direct", "numa_of_gpu": "[3, 2, 1, 0]"}
PEERS = """\
 \tGPU0\tGPU1\tGPU2\tGPU3\t
 GPU0\tX\tOK\tOK\tOK\t
 GPU1\tOK\tX\tOK\tOK\t
 GPU2\tOK\tOK\tX\tOK\t
 GPU3\tOK\tOK\tOK\tX\t

Legend:

  OK   = Status Ok
"""


def read(text: str, *wanted: str) -> dict[str, str | None]:
    values = keys(found(text).text)
    return {key: values.get(key) for key in wanted}


@pytest.mark.parametrize(
    "paste",
    [
        pytest.param(lambda text: text, id="as it is"),
        pytest.param(lambda text: "".join(f"    {line}\n" for line in text.splitlines()), id="in a code block"),
        pytest.param(lambda text: "".join(f"> {line}\n" for line in text.splitlines()), id="in a mail"),
        pytest.param(lambda text: f"```\n{text}```\n".replace("\n", "\r\n"), id="fenced, from Windows"),
        pytest.param(lambda text: f"$ nvidia-smi topo -p2p r\n{PEERS}\n$ nvidia-smi topo -m\n{text}", id="after -p2p"),
        pytest.param(lambda text: f"{text}\n{PEERS}", id="before -p2p"),
        pytest.param(lambda text: text.replace("\tGPU0", "\x1b[4m\tGPU0", 1).replace("ID\n", "ID\x1b[0m\n"), id="ansi"),
        pytest.param(lambda text: text.replace("\t3\tN/A", "\t3\t\tN/A"), id="two tabs"),
    ],
)  # fmt: skip
def test_a_matrix_is_read_however_it_was_pasted(paste: Callable[[str], str]) -> None:
    assert read(paste(BOARD), *DIRECT) == DIRECT


def test_a_list_of_slices_keeps_its_own_margin_in_a_quoted_paste() -> None:
    quoted = "".join(f">   {line}\n" for line in texts.MIG_LIST.splitlines())
    assert read(quoted, "gpu", "num_gpus", "slices_per_gpu") == {
        "gpu": "a100_mig_3g", "num_gpus": "4", "slices_per_gpu": "2",
    }  # fmt: skip


def numbered(links: dict[int, list[str]]) -> str:
    """Four GPUs and numbered NICs."""
    rows = [[*row, *links[i]] for i, row in enumerate(texts.uniform(4, "NV18"))]
    return texts.topo(rows, [f"NIC{i}" for i in range(len(links[0]))])


def test_bonded_ports_do_not_count_where_there_are_others() -> None:
    near, far = ["NODE", "NODE", "SYS", "SYS", "SYS"], ["SYS", "SYS", "NODE", "NODE", "NODE"]
    legend = "\nNIC Legend:\n\n" + "".join(f"  NIC{i}: mlx5_{i if i < 4 else 'bond_0'}\n" for i in range(5))
    file = found(numbered({0: near, 1: near, 2: far, 3: far}) + legend)
    assert keys(file.text)["num_nics"] == "4"
    assert "mlx5_bond_0: left out" in "\n".join(file.notes)


def test_adapters_of_which_there_are_too_many_are_doubted() -> None:
    row = ["PIX"] * 9
    file = found(numbered(dict.fromkeys(range(4), row)))
    assert "9 NICs are near 4 GPUs: several may be functions of one adapter" in "\n".join(file.notes)


def test_the_nic_of_each_gpu_is_written_where_it_is_not_that_of_the_order() -> None:
    crossed = {0: ["SYS", "PIX"], 1: ["SYS", "PIX"], 2: ["PIX", "SYS"], 3: ["PIX", "SYS"]}
    assert read(numbered(crossed), "num_nics", "nic_of_gpu") == {"num_nics": "2", "nic_of_gpu": "[1, 1, 0, 0]"}
    straight = {0: ["PIX", "SYS"], 1: ["PIX", "SYS"], 2: ["SYS", "PIX"], 3: ["SYS", "PIX"]}
    assert read(numbered(straight), "num_nics", "nic_of_gpu") == {"num_nics": "2", "nic_of_gpu": None}


NCCL_LOG = "n1:12:34 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/RoCE [1]mlx5_1:1/RoCE [RO]; OOB eth0:10.0.0.1<0>\n"
IBSTAT = """\
CA 'mlx5_{i}'
\tCA type: MT4123
\tNumber of ports: 1
\tPort 1:
\t\tState: {state}
\t\tPhysical state: LinkUp
\t\tRate: {rate}
\t\tLink layer: {layer}
"""


def test_ibstat_says_rates_and_what_is_down() -> None:
    ports = [("Active", 200, "InfiniBand")] * 3 + [("Down", 10, "InfiniBand"), ("Active", 25, "Ethernet")]
    text = "".join(IBSTAT.format(i=i, state=s, rate=r, layer=layer) for i, (s, r, layer) in enumerate(ports))
    file = found(text)
    assert {key: keys(file.text)[key] for key in ("num_nics", "nic_gbps", "fabric")} == {
        "num_nics": "3", "nic_gbps": "200", "fabric": "infiniband",
    }  # fmt: skip
    notes = "\n".join(file.notes)
    assert "mlx5_3 are down" in notes and "mlx5_4 (roce at 25 Gb/s): left out" in notes


def test_a_node_with_a_slow_adapter_is_odd(tmp_path: Path) -> None:
    for node in range(3):
        rate = 100 if node == 1 else 200
        text = "".join(IBSTAT.format(i=i, state="Active", rate=rate, layer="InfiniBand") for i in range(2))
        (tmp_path / f"n{node}.txt").write_text(text)
    file = discover_from(texts_of_files([str(tmp_path)]), "site")
    assert keys(file.text)["nic_gbps"] == "200"
    assert "n1 is odd: 2 NICs at 100 Gb/s, where 2 of 3 nodes have 2 NICs at 200 Gb/s" in file.notes


def test_the_log_of_nccl_names_the_adapters_that_it_uses() -> None:
    assert read(NCCL_LOG, "num_nics", "nic_gbps", "fabric") == {"num_nics": "2", "nic_gbps": "???", "fabric": "roce"}


TABLE = """\
+-----------------------------------------------------------------------------+
| NVIDIA-SMI 510.47.03    Driver Version: 510.47.03    CUDA Version: 11.6     |
|-------------------------------+----------------------+----------------------+
| GPU  Name        Persistence-M| Bus-Id        Disp.A | Volatile Uncorr. ECC |
|===============================+======================+======================|
|   0  NVIDIA A100-SXM...  On   | 00000000:07:00.0 Off |                   {mig} |
| N/A   30C    P0    55W / 400W |      0MiB / {memory}MiB |      0%      Default |
|                               |                      |             {state} |
+-------------------------------+----------------------+----------------------+
"""


@pytest.mark.parametrize(("memory", "entry"), [(81920, "a100_sxm_80g"), (40960, "a100_sxm_40g")])
def test_the_plain_table_says_the_card_by_its_memory(memory: int, entry: str) -> None:
    file = found(TABLE.format(mig=" 0", memory=memory, state="Disabled"))
    assert (keys(file.text)["gpu"], keys(file.text)["num_gpus"]) == (entry, "1")
    assert not [note for note in file.notes if "MIG" in note]
    cut = found(TABLE.format(mig="On", memory=memory, state=" Enabled"))
    assert any("MIG is on for 1 of 1 GPUs" in note for note in cut.notes)
    assert card_of("NVIDIA A100-SXM...").entry is None  # without its memory


def test_a_card_that_pci_ids_does_not_know_is_known_by_its_number() -> None:
    lines = ["17:00.0 3D controller: NVIDIA Corporation Device 2330 (rev a1)",
             "18:00.0 3D controller: NVIDIA Corporation GH100 [H100 SXM5 80GB] (rev a1)"]  # fmt: skip
    assert read("\n".join(lines) + "\n", "gpu", "num_gpus") == {"gpu": "h100_sxm", "num_gpus": "2"}


def test_links_of_gres_conf_are_nvlinks() -> None:
    rows = (",".join("-1" if a == b else "4" if a // 4 == b // 4 else "0" for b in range(8)) for a in range(8))
    text = "".join(f"Name=gpu Type=a100 File=/dev/nvidia{i} Links={row}\n" for i, row in enumerate(rows))
    assert read(text, "num_gpus", "domain_size", "nvlink") == {"num_gpus": "8", "domain_size": "4", "nvlink": "direct"}
    assert "name one of a100_pcie_40g" in "\n".join(found(text).notes)


def test_slices_that_slurm_counts_are_no_gpus() -> None:
    line = "NodeName=n1 CPUTot=128 Sockets=2 CoresPerSocket=64 RealMemory=1031000 Gres={gres} State=IDLE\n"
    mixed = found(line.format(gres="gpu:a100_1g.10gb:14(S:0-1),gpu:a100:6(S:0-1)"))
    assert keys(mixed.text)["num_gpus"] == "6"
    assert "there are also 14 1g.10gb" in "\n".join(mixed.notes)
    cut = read(line.format(gres="gpu:1g.10gb:42,gpu:3g.40gb:2"), "num_gpus", "domain_size", "nvlink", "slices_per_gpu")
    assert cut == {"num_gpus": "42", "domain_size": "1", "nvlink": "none", "slices_per_gpu": "???"}
    listed = "NodeName=n1 Name=gpu Type=1g.10gb MultipleFiles=/dev/nvidia0,/dev/nvidia-caps/nvidia-cap66\n" * 2
    assert read(listed, "num_gpus", "nvlink") == {"num_gpus": "2", "nvlink": "none"}


def test_gres_conf_that_lists_several_kinds_is_that_of_most_nodes() -> None:
    text = "NodeName=gpu[01-04] Name=gpu Type=a100 File=/dev/nvidia[0-7]\n"
    file = found(text + "NodeName=v1 Name=gpu Type=v100 File=/dev/nvidia[0-3]\n")
    assert (keys(file.text)["num_nodes"], keys(file.text)["num_gpus"]) == ("4", "8")
    assert "lists other GPUs too: 4 × v100 on v1" in "\n".join(file.notes)
    assert "leaves the GPUs to AutoDetect" in "\n".join(found("AutoDetect=nvml\n").notes)


def test_a_third_tier_of_switches_joins_pods() -> None:
    leaves = "".join(f"SwitchName=s{i} Level=0 LinkSpeed=1 Nodes=n[{18 * i + 1}-{18 * i + 18}]\n" for i in range(4))
    above = (
        "SwitchName=s4 Level=1 Nodes=n[1-36] Switches=s[0-1]\nSwitchName=s5 Level=1 Nodes=n[37-72] Switches=s[2-3]\n"
    )
    top = "SwitchName=s6 Level=2 LinkSpeed=1 Nodes=n[1-72] Switches=s[4-5]\n"
    assert read(leaves + above + top, "num_nodes", "nodes_per_leaf", "nodes_per_pod") == {
        "num_nodes": "72", "nodes_per_leaf": "18", "nodes_per_pod": "36",
    }  # fmt: skip
    assert read(leaves + above, "nodes_per_leaf", "nodes_per_pod") == {"nodes_per_leaf": "18", "nodes_per_pod": None}


def test_an_old_ibnetdiscover_without_rates_still_says_nodes_and_leaves() -> None:
    text = """\
switchguid=0xb8cffff002347
Switch\t24 "S-000b8cffff002347"\t\t# "MT47396 Infiniscale-III Mellanox Technologies" base port 0 lid 1 lmc 0
[24]\t"H-0002c90200267924"[1]\t\t# "node24 HCA-1" lid 18
[23]\t"H-0002c9020026771c"[1]\t\t# "node23 HCA-1" lid 17
"""
    assert read(text, "num_nodes", "nodes_per_leaf", "nic_gbps") == {
        "num_nodes": "2", "nodes_per_leaf": "2", "nic_gbps": "???",
    }  # fmt: skip
