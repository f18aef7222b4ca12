"""Checks of this node before a job: does it match the cluster file, and can the job run on it?

On a CPU node the applicable checks run for real; GPU checks read nvidia-smi (launcher/preflight/gpu.py).
"""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from launcher import env
from launcher.cluster import Cluster, Node, commands
from launcher.cluster.machine import RDMA_FABRICS, Machine, read_machine
from launcher.cluster.readers_nccl import read_nccl_topology
from launcher.errors import InputError
from launcher.preflight.extensions import lock_findings
from launcher.preflight.findings import Finding, Level
from launcher.preflight.gpu import gpu_findings
from launcher.preflight.limits import Limits, limit_findings, read_limits
from launcher.units import GIB, format_bytes

MIN_FREE_BYTES = 10 * GIB  # our choice: space for logs and a checkpoint of a small model
LOW_FREE_BYTES = GIB // 4


@dataclass(frozen=True)
class Site:
    """The inputs of the checks: the host's name, commands, system files, and the environment that the job inherits."""

    host: str
    run: commands.Runner
    machine: Machine
    environment: Mapping[str, str]
    torch_cuda: str | None
    limits: Limits

    @classmethod
    def here(cls) -> Site:
        """Return the inputs of this process."""
        surroundings = env.environment()
        return cls(
            socket.gethostname(), commands.run, read_machine(), surroundings, torch_cuda_version(), read_limits()
        )


def preflight(
    cluster: Cluster,
    *,
    run_folder: Path,
    ports: Sequence[int] = (),
    free_bytes: int = MIN_FREE_BYTES,
    ranks: int | None = None,
    site: Site | None = None,
) -> list[Finding]:
    """Run every check on this node, within a few seconds; findings have the host's name.

    run_folder: where the job will write, or the nearest existing folder. ports: the coordinator's, where it is here.
    free_bytes: what the job may write. ranks: number of ranks here, by default one per GPU.
    """
    site = site or Site.here()
    node = cluster.node
    ranks = node.num_gpus if ranks is None else ranks
    findings = [
        *(
            gpu_findings(node, site.run, torch_cuda=site.torch_cuda, ranks=ranks, visible=visible_devices(site))
            if node.gpu.kind == "cuda"
            else cpu_findings(node, site)
        ),
        *nic_findings(cluster, site.machine),
        *nccl_findings(cluster, site),
        *name_findings(cluster, site.host),
        *port_findings(ports),
        *disk_findings(run_folder, free_bytes=free_bytes),
        *limit_findings(cluster, site.limits, ranks=ranks),
        *lock_findings(site.environment),
    ]
    return [replace(finding, host=site.host) for finding in findings]


def visible_devices(site: Site) -> int | None:
    """Return how many GPUs CUDA_VISIBLE_DEVICES shows a process; None if it is not set.

    CUDA takes the entries up to the first that names no device: -1, or Slurm's NoDevFiles.
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#env-vars
    """
    value = site.environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    entries = [entry.strip() for entry in value.split(",")]
    devices = list(takewhile(re.compile(r"[0-9]{1,4}|(GPU|MIG)-\S+").fullmatch, entries))
    return len(devices) if len(set(devices)) == len(devices) else 0  # a duplicate hides all devices


def cpu_findings(node: Node, site: Site) -> list[Finding]:
    """Cores and memory for CPU ranks."""
    cores, memory = site.machine.cores, site.machine.memory_bytes
    needed = node.num_gpus * node.gpu.memory_bytes
    found = [Finding(Level.OK, "cores", f"{cores} usable cores for up to {node.num_gpus} ranks")]
    if cores < node.num_gpus:
        found = [
            Finding(Level.WARNING, "cores", f"{node.num_gpus} ranks share {cores} usable cores: they will be slow")
        ]
    if memory and memory < needed:
        message = f"{format_bytes(memory)}, and {node.num_gpus} ranks may take {format_bytes(needed)}: use fewer ranks"
        found.append(Finding(Level.WARNING, "memory", message))
    return found


def nic_findings(cluster: Cluster, machine: Machine) -> list[Finding]:
    """Check the number and speed of active RDMA ports against the cluster file, if there are several nodes."""
    node = cluster.node
    if cluster.num_nodes == 1 or cluster.fabric in ("none", "ethernet"):
        return []
    up = [nic for nic in machine.nics if nic.active]
    found = []
    down = [nic.name for nic in machine.nics if not nic.active]
    if len(up) < node.num_nics:
        which = f" ({', '.join(down)} down)" if down else ""
        message = f"{len(up)} RDMA ports are up{which}, the cluster file says {node.num_nics}: exclude this node"
        found.append(Finding(Level.PROBLEM, "nics", message))
    slow = [f"{nic.name} {nic.gbps:g}" for nic in up if 0 < nic.gbps < node.nic_gbps]
    if len(up) - len(slow) < node.num_nics <= len(up):
        message = f"ports run below {node.nic_gbps:g} Gb/s ({', '.join(slow)} Gb/s): check cables and switch ports"
        found.append(Finding(Level.PROBLEM, "nics", message))
    return found or [Finding(Level.OK, "nics", f"{len(up)} RDMA ports are up at {node.nic_gbps:g} Gb/s or more")]


def nccl_findings(cluster: Cluster, site: Site) -> list[Finding]:
    """Inherited NCCL and gloo variables that contradict this node."""
    found = []
    given = {name: value for name, value in site.environment.items() if name.startswith(("NCCL_", "GLOO_")) and value}
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        if name in given and not _interfaces(given[name], site.machine.interfaces):
            have = ", ".join(site.machine.interfaces)
            found.append(_contradiction(name, given[name], f"no interface here matches it (there are {have})"))
    if "NCCL_IB_HCA" in given and not _interfaces(given["NCCL_IB_HCA"], [nic.name for nic in site.machine.nics]):
        found.append(_contradiction("NCCL_IB_HCA", given["NCCL_IB_HCA"], "no RDMA adapter here matches it"))
    if given.get("NCCL_IB_DISABLE") == "1" and cluster.num_nodes > 1 and cluster.fabric in RDMA_FABRICS:
        found.append(
            _contradiction("NCCL_IB_DISABLE", "1", f"the cluster file says {cluster.fabric}; TCP is far slower")
        )
    if given.get("NCCL_P2P_DISABLE") == "1" and cluster.node.nvlink != "none":
        found.append(_contradiction("NCCL_P2P_DISABLE", "1", "it turns NVLink off"))
    if "NCCL_TOPO_FILE" in given:
        found += _topo_file_findings(cluster, Path(given["NCCL_TOPO_FILE"]))
    names = ", ".join(sorted(given)) or "none set"
    return found or [Finding(Level.OK, "nccl environment", f"nothing contradicts this node ({names})")]


def _topo_file_findings(cluster: Cluster, file: Path) -> list[Finding]:
    try:
        topology = read_nccl_topology(file.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        return [_contradiction("NCCL_TOPO_FILE", str(file), f"it cannot be read ({error.strerror})")]
    except InputError as error:
        return [_contradiction("NCCL_TOPO_FILE", str(file), str(error))]
    expected = cluster.node.num_gpus // cluster.node.slices_per_gpu
    if topology.gpus and len(topology.gpus) != expected:
        why = f"it describes {len(topology.gpus)} GPUs, a node of {cluster.name} has {expected}"
        return [_contradiction("NCCL_TOPO_FILE", str(file), why)]
    return []


def _contradiction(name: str, value: str, why: str) -> Finding:
    return Finding(
        Level.PROBLEM, "nccl environment", f"{name}={value} contradicts this node ({why}): unset or correct it"
    )


def _interfaces(wanted: str, existing: list[str] | tuple[str, ...]) -> list[str]:
    """Return the interfaces that NCCL would use: a list of prefixes, `=` for exact names, `^` for all others.

    https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-socket-ifname
    """
    invert, exact = wanted.startswith("^"), "=" in wanted[:2]
    names = [name.partition(":")[0] for name in wanted.lstrip("^=").split(",") if name]
    return [
        name for name in existing if any(name == want if exact else name.startswith(want) for want in names) != invert
    ]


def name_findings(cluster: Cluster, host: str) -> list[Finding]:
    """Check that the host's name leads other nodes here: it resolves, for several nodes not to loopback."""
    if cluster.num_nodes == 1:
        return []
    try:
        addresses = sorted({str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, None)})
    except OSError as error:
        message = f"{host} does not resolve ({error.strerror or error}): other nodes cannot reach it by name"
        return [Finding(Level.PROBLEM, "name", message)]
    outside = [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
    if not outside:
        message = f"{host} resolves to {', '.join(addresses)} only: give it a real address in /etc/hosts or DNS"
        return [Finding(Level.PROBLEM, "name", message)]
    return [Finding(Level.OK, "name", f"{host} resolves to {', '.join(outside)}")]


def port_findings(ports: Sequence[int]) -> list[Finding]:
    """Check that the coordinator can listen on one of these ports."""
    problems = []
    for port in ports:
        if (problem := _port_problem(port)) is None:
            return [Finding(Level.OK, "port", f"port {port} is free")]
        problems.append(problem)
    return [Finding(Level.PROBLEM, "port", "; ".join(problems))] if problems else []


def _port_problem(port: int) -> str | None:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))  # bound briefly, never listening
        except OverflowError:
            return f"there is no port {port}: choose one from 1024 to 65535"
        except OSError as error:
            why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
            return f"port {port} {why}: set launch.coordinator to a free one"
    return None


def disk_findings(run_folder: Path, *, free_bytes: int) -> list[Finding]:
    """Check that the run folder is writable and has space."""
    folder = next(path for path in (run_folder.absolute(), *run_folder.absolute().parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".preflight-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return [Finding(Level.PROBLEM, "run folder", f"{folder} cannot be written ({error.strerror}): set run_dir")]
    free = shutil.disk_usage(folder).free
    if free < free_bytes:
        level = Level.PROBLEM if free < LOW_FREE_BYTES else Level.WARNING
        message = f"{folder} has {format_bytes(free)} free, the job may write {format_bytes(free_bytes)}: set run_dir"
        return [Finding(level, "run folder", message)]
    return [Finding(Level.OK, "run folder", f"{folder} can be written, {format_bytes(free)} free")]


def torch_cuda_version() -> str | None:
    """Return torch's CUDA version without importing torch; None for a CPU build or no torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / "version.py"
    match = re.search(
        r"^cuda.*= '([\d.]+)'", file.read_text(encoding="utf-8") if file.is_file() else "", flags=re.MULTILINE
    )
    return match[1] if match else None
