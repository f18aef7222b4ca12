"""Preflight: GPU checks from recorded texts, the others on this machine."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.cluster import Cluster, commands
from launcher.cluster.machine import Machine, Nic
from launcher.cluster.readers_smi import QUERY_COMMAND
from launcher.config.compose import load
from launcher.preflight.checks import (
    Site,
    disk_findings,
    name_findings,
    nccl_findings,
    nic_findings,
    port_findings,
    preflight,
    torch_cuda_version,
    visible_devices,
)
from launcher.preflight.findings import Finding, Level, hosts_to_exclude, worst
from launcher.preflight.gpu import gpu_findings
from launcher.preflight.limits import Limits, limit_findings, read_limits
from launcher.units import GIB, MIB
from tests.cluster import texts

LISTED = "".join(f"GPU {i}: NVIDIA A100-SXM4-80GB (UUID: GPU-{i})\n" for i in range(8))
TWELVE_LINKS = "".join(f"\t Link {link}: 25 GB/s\n" for link in range(12))
LINKS = "".join(f"GPU {i}: NVIDIA A100-SXM4-80GB (UUID: GPU-{i})\n{TWELVE_LINKS}" for i in range(8))
NUMA = [f"0-23\t{numa}\tN/A" for numa in (3, 3, 1, 1, 7, 7, 5, 5)]
HEALTHY = {
    ("nvidia-smi", "-L"): LISTED,
    QUERY_COMMAND: texts.query(8),
    ("nvidia-smi", "topo", "-m"): texts.topo(texts.uniform(8, "NV12"), tails=NUMA),
    ("nvidia-smi", "nvlink", "-s"): LINKS,
}
NICS = tuple(Nic(f"mlx5_{i}", "infiniband", 200.0, active=True) for i in range(8))
MACHINE = Machine(cores=128, memory_bytes=2**41, sockets=2, nics=NICS, interfaces=("eth0", "ib0", "lo"))
ROOMY = Limits(open_files=2**20, locked_bytes=None, shared_bytes=64 * GIB, shared_free_bytes=60 * GIB)
NO_TEXT = commands.Output(None, "it is not installed", installed=False)


def cluster(*overrides: str) -> Cluster:
    return load(["cluster=dgx_a100_80g", "cluster.num_nodes=2", *overrides]).job.cluster


def site(given: Mapping[tuple[str, ...], str] = HEALTHY, **environment: str) -> Site:
    def run(argv: tuple[str, ...]) -> commands.Output:
        return commands.Output(given[argv]) if argv in given else NO_TEXT

    return Site("node7", run, MACHINE, environment, torch_cuda="12.8", limits=ROOMY)


def problems(findings: list[Finding]) -> list[str]:
    return [finding.message for finding in findings if finding.level is Level.PROBLEM]


def gpu(changed: Mapping[tuple[str, ...], str], *overrides: str, cuda: str | None = "12.8") -> list[Finding]:
    return gpu_findings(cluster(*overrides).node, site({**HEALTHY, **changed}).run, torch_cuda=cuda)


def test_a_healthy_node_passes_every_gpu_check() -> None:
    findings = gpu({})

    assert {finding.check for finding in findings} == {
        "gpu count",
        "gpu state",
        "driver",
        "nvlink domains",
        "nvlink state",
        "numa",
    }
    assert worst(findings) is Level.OK


TOPO, LINK, LIST = ("nvidia-smi", "topo", "-m"), ("nvidia-smi", "nvlink", "-s"), ("nvidia-smi", "-L")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param(
            {LIST: LISTED[: LISTED.index("GPU 7")]}, "7 GPUs, expected: 8 GPUs", id="one GPU fell off the bus"
        ),
        pytest.param({QUERY_COMMAND: texts.query(8, memory="40960")}, "40.0 GiB", id="the 40 GB part"),
        pytest.param({QUERY_COMMAND: texts.query(8, ecc="3")}, "3 uncorrectable", id="ECC errors"),
        pytest.param({QUERY_COMMAND: texts.query(8, remap="1")}, "could not remap", id="row remapping failed"),
        pytest.param({QUERY_COMMAND: texts.query(8, mig="Enabled")}, "-mig 0", id="left in MIG mode"),
        pytest.param(
            {QUERY_COMMAND: texts.query(8, throttle="0x0000000000000040", clock="210")}, "210 of 1410 MHz", id="hot"
        ),
        pytest.param({QUERY_COMMAND: texts.query(1, driver="470.82.01")}, "525.60.13 or later", id="old driver"),
        pytest.param(
            {TOPO: texts.topo(texts.blocks(range(7), [7], link="NV12"))}, "7 pairs", id="no NVLink to one GPU"
        ),
        pytest.param({LINK: LINKS.replace("25 GB/s", "<inactive>", 1)}, "GPU 0: link 0", id="one link down"),
    ],
)
def test_what_is_broken_is_named(changed: Mapping[tuple[str, ...], str], said: str) -> None:
    found = problems(gpu(changed))

    assert len(found) == 1
    assert said in found[0]


def test_pages_to_retire_are_a_warning() -> None:
    assert worst(gpu({QUERY_COMMAND: texts.query(8, retired="Yes")})) is Level.WARNING


def test_a_text_that_cannot_be_read_is_unknown_and_the_other_checks_go_on() -> None:
    findings = gpu({QUERY_COMMAND: "Field is not valid", TOPO: "garbage"})

    assert sorted({finding.level for finding in findings}) == [Level.OK, Level.UNKNOWN]
    assert "nvlink state" in {finding.check for finding in findings}


def test_torch_without_cuda_is_a_problem_on_a_gpu_node() -> None:
    assert "without CUDA" in problems(gpu({}, cuda=None))[0]


def test_no_driver_is_a_problem() -> None:
    assert "it is not installed" in problems(gpu_findings(cluster().node, lambda argv: NO_TEXT, torch_cuda=None))[0]


def test_mig_slices_are_counted_by_profile() -> None:
    node = load(["cluster=a100_mig_3g", "cluster.node.num_gpus=4"]).job.cluster.node
    given = {LIST: texts.MIG_LIST, QUERY_COMMAND: texts.query(2, mig="Enabled")}

    findings = gpu_findings(node, site(given).run, torch_cuda="12.8")
    assert worst(findings) is Level.OK
    fewer = gpu_findings(replace(node, num_gpus=5), site(given).run, torch_cuda="12.8")
    assert "4 slices 3g.40gb, expected: 5" in problems(fewer)[0]


@pytest.mark.parametrize(
    ("nics", "said"),
    [
        (NICS, None),
        (NICS[:7], "7 RDMA ports are up"),
        ((*NICS[:7], replace(NICS[7], active=False)), "(mlx5_7 down)"),
        ((*NICS[:7], replace(NICS[7], gbps=100.0)), "mlx5_7 100"),
        ((*NICS, replace(NICS[7], name="storage", gbps=100.0)), None),
    ],
)
def test_nics_are_compared_with_the_cluster_file(nics: tuple[Nic, ...], said: str | None) -> None:
    found = problems(nic_findings(cluster(), replace(MACHINE, nics=nics)))

    assert (found == []) if said is None else (said in found[0])


def topology_file(folder: Path, text: str) -> str:
    file = folder / "topo.xml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    ("environment", "contradicts"),
    [
        ({}, False),
        ({"NCCL_SOCKET_IFNAME": "eth"}, False),
        ({"NCCL_SOCKET_IFNAME": "=eth0"}, False),
        ({"NCCL_SOCKET_IFNAME": "=eth"}, True),
        ({"NCCL_SOCKET_IFNAME": "^lo,docker"}, False),
        ({"NCCL_SOCKET_IFNAME": "enp"}, True),
        ({"GLOO_SOCKET_IFNAME": "bond0"}, True),
        ({"NCCL_IB_HCA": "mlx5_0:1,mlx5_1:1"}, False),
        ({"NCCL_IB_HCA": "bnxt"}, True),
        ({"NCCL_IB_DISABLE": "1"}, True),
        ({"NCCL_P2P_DISABLE": "1"}, True),
        ({"NCCL_DEBUG": "INFO"}, False),
        ({"NCCL_TOPO_FILE": "/nowhere/topo.xml"}, True),
    ],
)
def test_inherited_nccl_variables_that_contradict_the_node_are_named(
    environment: Mapping[str, str], contradicts: bool
) -> None:
    found = problems(nccl_findings(cluster(), site(**environment)))

    assert [any(name in message for message in found) for name in environment] == [contradicts] * len(environment)
    assert len(found) == int(contradicts)


def test_a_topology_file_of_another_machine_is_named(tmp_path: Path) -> None:
    other = site(NCCL_TOPO_FILE=topology_file(tmp_path, texts.NCCL_XML))

    assert "4 GPUs, a node of dgx_a100_80g has 8" in problems(nccl_findings(cluster(), other))[0]
    assert problems(nccl_findings(cluster("cluster.node.num_gpus=4"), other)) == []


def test_a_host_name_must_resolve_outside_loopback_for_several_nodes() -> None:
    assert "give it a real address" in problems(name_findings(cluster(), "localhost"))[0]
    assert "does not resolve" in problems(name_findings(cluster(), "no-such-host.invalid"))[0]
    assert worst(name_findings(cluster(), "192.0.2.7")) is Level.OK
    assert name_findings(load(["cluster=cpu"]).job.cluster, "localhost") == []


def test_a_taken_port_is_a_problem_and_a_free_one_is_not() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is taken" in problems(port_findings([port]))[0]
    assert worst(port_findings([port])) is Level.OK
    assert "no port" in problems(port_findings([70000]))[0]


def test_the_run_folder_is_written_to_and_left_as_it_was(tmp_path: Path) -> None:
    findings = disk_findings(tmp_path / "runs" / "new", free_bytes=1)

    assert worst(findings) is Level.OK
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_reported() -> None:
    assert worst(disk_findings(Path("/tmp"), free_bytes=2**60)) >= Level.WARNING


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_a_problem() -> None:
    assert "cannot be written" in problems(disk_findings(Path("/proc/sys"), free_bytes=1))[0]


def test_a_limit_on_locked_memory_is_checked_where_nodes_use_rdma() -> None:
    for overrides, checked in (((), True), (("cluster.num_nodes=1",), False), (("cluster.fabric=ethernet",), False)):
        checks = {finding.check for finding in limit_findings(cluster(*overrides), ROOMY, ranks=8)}
        assert ("locked memory" in checks) is checked


LIMITS = {
    "no shared memory": (replace(ROOMY, shared_bytes=None), "problem", "there is no /dev/shm"),
    "a container's default": (replace(ROOMY, shared_bytes=64 * MIB), "problem", "--shm-size"),
    "left-over files": (replace(ROOMY, shared_free_bytes=MIB), "warning", "left-over files"),
    "few open files": (replace(ROOMY, open_files=1024), "warning", "at most 1024 (ulimit -Hn)"),
    "hardly any open files": (replace(ROOMY, open_files=256), "problem", "at most 256"),
    "little locked memory": (replace(ROOMY, locked_bytes=8 * MIB), "warning", "8.0 MiB (ulimit -l)"),
}


@pytest.mark.parametrize("case", LIMITS)
def test_a_limit_that_is_too_low_is_reported_with_the_way_out(case: str) -> None:
    limits, level, words = LIMITS[case]
    [bad] = [f for f in limit_findings(cluster(), limits, ranks=8) if f.level is not Level.OK]
    assert (bad.level.name.lower(), words in bad.message) == (level, True), bad


def test_the_limits_of_this_process_are_read(tmp_path: Path) -> None:
    code = (
        "import resource; from launcher.preflight.limits import read_limits\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 8192))\n"
        "found = read_limits(); print(found.open_files, found.locked_bytes)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["200", "4096"]
    assert read_limits().shared_bytes == shutil.disk_usage("/dev/shm").total
    assert read_limits(tmp_path / "none").shared_bytes is None


VISIBLE = {"0,1,2": 3, "0,1,-1,2": 2, "": 0, "NoDevFiles": 0, "GPU-1,GPU-2": 2, "0,0": 0, "\u00b2": 0, "1" * 5000: 0}


@pytest.mark.parametrize("value", VISIBLE)
def test_devices_are_counted_as_cuda_counts_them(value: str) -> None:
    assert visible_devices(site(CUDA_VISIBLE_DEVICES=value)) == VISIBLE[value]
    assert visible_devices(site()) is None


def test_fewer_visible_gpus_than_the_job_wants_are_a_problem() -> None:
    node = cluster().node
    found = gpu_findings(node, site().run, torch_cuda="12.8", visible=4)
    assert "CUDA_VISIBLE_DEVICES shows 4 GPUs, but the job wants 8" in problems(found)[0]
    assert problems(gpu_findings(node, site().run, torch_cuda="12.8", ranks=4, visible=4)) == []


def test_a_job_on_some_gpus_of_a_node_does_not_miss_those_that_it_is_not_shown() -> None:
    linked = texts.topo(texts.uniform(2, "NV12"))
    two = {LIST: LISTED[: LISTED.index("GPU 2")], QUERY_COMMAND: texts.query(2), TOPO: linked}
    shown = site({**HEALTHY, **two, LINK: LINKS[: LINKS.index("GPU 2")]}).run
    assert problems(gpu_findings(cluster().node, shown, torch_cuda="12.8", ranks=2)) == []
    assert problems(gpu_findings(cluster().node, shown, torch_cuda="12.8"))
    unlinked = site({**HEALTHY, **two, TOPO: texts.topo(texts.uniform(2, "SYS"))}).run
    assert "have no NVLink here" in problems(gpu_findings(cluster().node, unlinked, torch_cuda="12.8", ranks=2))[0]


def test_this_machine_passes_as_a_cpu_cluster(tmp_path: Path) -> None:
    ours = load(["cluster=cpu", "cluster.node.num_gpus=1"]).job.cluster
    roomy = replace(Site.here(), limits=ROOMY)  # those of a container may well be too low
    findings = preflight(ours, run_folder=tmp_path, free_bytes=1, site=roomy)

    assert worst(findings) is Level.OK, findings
    assert {finding.host for finding in findings} == {socket.gethostname()}


def test_hosts_with_problems_are_those_to_exclude(tmp_path: Path) -> None:
    broken = site({**HEALTHY, LINK: LINKS.replace("25 GB/s", "<inactive>", 1)})
    findings = preflight(cluster(), run_folder=tmp_path, free_bytes=1, site=broken)

    assert hosts_to_exclude(findings) == ("node7",)
    assert next(f for f in findings if f.check == "nvlink state").to_dict()["level"] == "problem"


def test_the_cuda_version_of_torch_is_the_one_that_torch_reports() -> None:
    torch = pytest.importorskip("torch")

    assert torch_cuda_version() == torch.version.cuda


def test_the_inherited_environment_is_what_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "no-such-interface")
    ours = load(["cluster=cpu", "cluster.node.num_gpus=1"]).job.cluster

    assert any("no-such-interface" in message for message in problems(preflight(ours, run_folder=tmp_path)))


@pytest.mark.parametrize(
    ("numa", "level", "said"),
    [("[3,3,1,1,7,7,5,5]", Level.OK, "are those of"), ("[0,0,0,0,1,1,1,1]", Level.WARNING, "GPU0 is on 3, not 0")],
)
def test_numa_nodes_are_held_against_the_cluster_file(numa: str, level: Level, said: str) -> None:
    [finding] = [each for each in gpu({}, f"cluster.node.numa_of_gpu={numa}") if each.check == "numa"]
    assert finding.level is level and said in finding.message
