"""What `discover` writes down about a node, from recorded texts and for this very machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import env
from launcher.cluster import Cluster, commands
from launcher.cluster.discover import ClusterFile, discover, write_cluster_file
from launcher.cluster.machine import Machine, Nic, read_machine
from launcher.config.compose import load
from launcher.errors import InputError
from tests.cluster import texts

MLX = tuple(Nic(f"mlx5_{i}", "infiniband", 200.0, active=True) for i in range(4))
DGX = Machine(cores=128, memory_bytes=2048 * 2**30, sockets=2, nics=MLX, interfaces=("eth0", "lo"))
BARE = Machine(cores=4, memory_bytes=16 * 2**30, sockets=1, nics=(), interfaces=("lo",))


def whole_gpus(count: int, name: str) -> str:
    return "".join(f"GPU {i}: {name} (UUID: GPU-{i:08d})\n" for i in range(count))


def answers(given: Mapping[str, str]) -> commands.Runner:
    """A runner that knows the texts of some commands; every other one is not installed."""

    def run(argv: tuple[str, ...]) -> commands.Output:
        line = " ".join(argv)
        return commands.Output(given[line]) if line in given else commands.Output(None, f"no {line}", installed=False)

    return run


def composed(file: ClusterFile, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The file as the launcher reads it from a user's folder."""
    write_cluster_file(file, folder / "configs" / "cluster")
    monkeypatch.chdir(folder)
    return load([f"cluster={file.name}"]).job.cluster


SXM8 = {
    "nvidia-smi -L": whole_gpus(8, "NVIDIA A100-SXM4-80GB"),
    "nvidia-smi topo -m": texts.topo(
        [[*row, *(["PXB"] * 3 if i < 4 else ["SYS"] * 3), "SYS"] for i, row in enumerate(texts.uniform(8, "NV12"))],
        [nic.name for nic in MLX],
    ),
}


def test_an_nvswitch_node_becomes_one_domain_with_its_compute_nics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = discover("site", run=answers(SXM8), machine=DGX)
    cluster = composed(file, tmp_path, monkeypatch)
    node = cluster.node

    assert (cluster.fabric, cluster.scheduler) == ("infiniband", "local")
    assert (node.gpu.name, node.num_gpus, node.domains, node.nvlink) == (
        "a100_sxm_80g",
        8,
        (tuple(range(8)),),
        "nvswitch",
    )
    assert (node.num_nics, node.nic_gbps, node.cores) == (3, 200.0, 128)
    assert (node.nic_names, node.interface) == (("mlx5_0", "mlx5_1", "mlx5_2"), None)  # as `run` gives them to NCCL
    assert any("mlx5_3 share no PCIe switch" in note for note in file.notes)


def test_bridged_pcie_cards_become_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "nvidia-smi -L": whole_gpus(4, "NVIDIA A100 80GB PCIe"),
        "nvidia-smi topo -m": texts.topo(texts.blocks([0, 2], [1, 3], link="NV12")),
    }
    node = composed(discover("site", run=answers(given), machine=BARE), tmp_path, monkeypatch).node

    assert (node.nvlink, node.domains) == ("bridge", ((0, 2), (1, 3)))


def test_mig_slices_become_islands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = composed(
        discover("s", run=answers({"nvidia-smi -L": texts.MIG_LIST}), machine=BARE), tmp_path, monkeypatch
    ).node

    assert (node.gpu.mig_profile, node.num_gpus, node.domain_size, node.slices_per_gpu) == ("3g.40gb", 4, 1, 2)


def test_slurm_reports_how_many_nodes_there_are_and_how_many_share_a_leaf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = {
        "scontrol show node -o": texts.SLURM_NODE + "NodeName=login CPUTot=8 RealMemory=1000 Gres=(null) State=IDLE\n",
        "scontrol show topology": "SwitchName=a Nodes=dgx[1-3],login\nSwitchName=b Nodes=dgx4\n",
    }
    cluster = composed(discover("site", run=answers(SXM8 | slurm), machine=DGX), tmp_path, monkeypatch)

    assert (cluster.num_nodes, cluster.nodes_per_leaf, cluster.scheduler) == (4, 3, "slurm")


def test_without_rdma_the_ethernet_whose_speed_is_known_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = (Nic("eth0", "ethernet", 100.0, active=True), Nic("eth1", "ethernet", 0.0, active=True))
    file = discover("site", run=answers(SXM8), machine=replace(BARE, ethernet=ports))
    cluster = composed(file, tmp_path, monkeypatch)

    assert (cluster.fabric, cluster.node.num_nics, cluster.node.nic_gbps) == ("ethernet", 1, 100.0)
    assert (cluster.node.nic_names, cluster.node.interface) == (None, "eth0")
    both = tuple(replace(port, gbps=100.0) for port in ports)
    two = composed(discover("two", run=answers(SXM8), machine=replace(BARE, ethernet=both)), tmp_path, monkeypatch)
    assert (two.node.num_nics, two.node.interface) == (2, None)  # which of them, the libraries choose


def test_a_login_node_points_to_the_nodes_with_gpus() -> None:
    file = discover("site", run=answers({"scontrol show node -o": texts.SLURM_NODE}), machine=BARE)

    assert any("sees 0: run it as srun -N1 --exclusive --gres=gpu:8" in note for note in file.notes)


def test_a_process_that_was_given_some_of_the_gpus_is_reported() -> None:
    given = {
        "nvidia-smi -L": whole_gpus(1, "NVIDIA A100-SXM4-80GB"),
        "nvidia-smi topo -m": texts.topo([["X"]]),
        "scontrol show node -o": texts.SLURM_NODE,
    }
    assert any("sees 1: run it as srun" in note for note in discover("s", run=answers(given), machine=BARE).notes)


def test_nics_are_known_by_the_kernels_names_where_topo_numbers_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered = SXM8["nvidia-smi topo -m"]
    for i, nic in enumerate(MLX):
        numbered = numbered.replace(nic.name, f"NIC{i}") + f"  NIC{i}: {nic.name}\n"
    file = discover("site", run=answers(SXM8 | {"nvidia-smi topo -m": numbered}), machine=DGX)

    node = composed(file, tmp_path, monkeypatch).node
    assert (node.num_nics, node.nic_names) == (3, ("mlx5_0", "mlx5_1", "mlx5_2"))


@pytest.mark.parametrize(
    ("given", "key"),
    [
        pytest.param({"nvidia-smi -L": whole_gpus(8, "NVIDIA A100-SXM4-80GB")}, "cluster.node.domains", id="no topo"),
        pytest.param({"nvidia-smi -L": whole_gpus(1, "NVIDIA GB999")}, "gpu@node.gpu: ", id="unknown product"),
    ],
)
def test_what_is_unknown_stays_unset_and_composing_names_the_key(
    given: Mapping[str, str], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=key):
        composed(discover("site", run=answers(given), machine=BARE), tmp_path, monkeypatch)


def test_a_node_with_two_kinds_of_gpus_is_refused() -> None:
    text = whole_gpus(1, "NVIDIA A10") + whole_gpus(2, "NVIDIA L40S").splitlines()[1]
    with pytest.raises(InputError, match="mixes"):
        discover("site", run=answers({"nvidia-smi -L": text}), machine=BARE)


def test_a_failing_driver_is_not_taken_for_a_machine_without_gpus() -> None:
    with pytest.raises(InputError, match="repair the driver"):
        discover("site", run=lambda argv: commands.Output(None, "ended with status 9"), machine=BARE)


def test_this_machine_is_described_and_composes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = composed(discover("here", run=answers({})), tmp_path, monkeypatch)

    assert cluster.node.cores == env.usable_cores() == cluster.node.num_gpus
    assert cluster.node.host_memory_bytes > 0


def test_a_file_is_overwritten_only_by_force(tmp_path: Path) -> None:
    file = discover("here", run=answers({}), machine=BARE)
    path = write_cluster_file(file, tmp_path)
    path.write_text("mine\n")

    with pytest.raises(InputError, match="force=true"):
        write_cluster_file(file, tmp_path)
    assert path.read_text() == "mine\n"
    write_cluster_file(file, tmp_path, force=True)
    assert path.read_text() == file.text
    assert [found.name for found in tmp_path.iterdir()] == ["here.yaml"]


@pytest.mark.parametrize("name", ["../evil", "", "a b", "x.yaml/..", "$(id)"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot name"):
        discover(name, run=answers({}), machine=BARE)


def test_ethernet_with_hardware_is_read_from_sysfs(tmp_path: Path) -> None:
    for name, speed, device in [("eth0", "100000", True), ("eth1", "-1", True), ("lo", "", False)]:
        interface = tmp_path / "sys/class/net" / name
        (interface / "device" if device else interface).mkdir(parents=True)
        (interface / "operstate").write_text("up\n")
        (interface / "speed").write_text(f"{speed}\n")

    machine = read_machine(tmp_path)
    assert machine.interfaces == ("eth0", "eth1", "lo")
    assert [(nic.name, nic.gbps, nic.active) for nic in machine.ethernet] == [
        ("eth0", 100.0, True),
        ("eth1", 0.0, True),
    ]


def test_rdma_ports_are_read_from_sysfs(tmp_path: Path) -> None:
    for name, layer, rate, state in [
        ("mlx5_10", "InfiniBand", "200 Gb/sec (4X HDR)", "4: ACTIVE"),
        ("mlx5_2", "Ethernet", "100 Gb/sec (4X EDR)", "1: DOWN"),
        ("mlx5_2:2", "Ethernet", "100 Gb/sec (4X EDR)", "4: ACTIVE"),
    ]:
        device, _, number = name.partition(":")
        port = tmp_path / "sys/class/infiniband" / device / "ports" / (number or "1")
        port.mkdir(parents=True)
        for file, text in (("link_layer", layer), ("rate", rate), ("state", state)):
            (port / file).write_text(text + "\n")

    assert read_machine(tmp_path).nics == (
        Nic("mlx5_2", "roce", 100.0, active=False),
        Nic("mlx5_2:2", "roce", 100.0, active=True),
        Nic("mlx5_10", "infiniband", 200.0, active=True),
    )
