"""Checks of system limits: shared memory, open files, locked memory."""

from __future__ import annotations

import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster import Cluster
from launcher.preflight.findings import Finding, Level
from launcher.units import GIB, MIB, format_bytes

SHARED_MEMORY = Path("/dev/shm")
# Docker's and podman's default is 64 MiB, which one data loader's batch may fill:
# https://docs.docker.com/reference/cli/docker/container/run/#shm-size
CONTAINER_DEFAULT_BYTES = 64 * MIB
SHARED_BYTES_PER_RANK = GIB // 8  # ours: NCCL's buffers (some 10 MiB for each peer without P2P) and loaded batches
# Ours: torch, NCCL (a socket or a pipe for each peer and channel) and data loaders of one rank.
FILES_PER_RANK = 256
FEWEST_FILES = 1024


@dataclass(frozen=True)
class Limits:
    """Limits of this process: open files (hard), locked memory (soft; None: unlimited), /dev/shm."""

    open_files: int | None
    locked_bytes: int | None
    shared_bytes: int | None
    shared_free_bytes: int = 0


def read_limits(shared_memory: Path = SHARED_MEMORY) -> Limits:
    """Read the limits of this process. The agent raises that of open files to the hard one."""
    files, locked = resource.getrlimit(resource.RLIMIT_NOFILE)[1], resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    try:
        shared = shutil.disk_usage(shared_memory)
    except OSError:
        shared = None
    return Limits(
        open_files=None if files == resource.RLIM_INFINITY else files,
        locked_bytes=None if locked == resource.RLIM_INFINITY else locked,
        shared_bytes=shared.total if shared else None,
        shared_free_bytes=shared.free if shared else 0,
    )


def limit_findings(cluster: Cluster, limits: Limits, *, ranks: int) -> list[Finding]:
    """Return all findings, for this number of ranks on this node."""
    found = [shared_memory_finding(limits, ranks=ranks), open_files_finding(cluster, limits, ranks=ranks)]
    rdma = cluster.num_nodes > 1 and cluster.fabric in ("infiniband", "roce", "efa", "slingshot")
    return [*found, *([locked_memory_finding(limits)] if rdma else [])]


def shared_memory_finding(limits: Limits, *, ranks: int) -> Finding:
    """Check shared memory of ranks and data loaders: too little causes a bus error during a run."""
    check, wanted = "shared memory", ranks * SHARED_BYTES_PER_RANK
    if limits.shared_bytes is None:
        return Finding(Level.PROBLEM, check, f"there is no {SHARED_MEMORY}: mount a tmpfs there")
    size, free = format_bytes(limits.shared_bytes), format_bytes(limits.shared_free_bytes)
    way_out = "in a container: --shm-size or --ipc=host; else remove left-over files there, or remount it larger"
    if limits.shared_bytes <= CONTAINER_DEFAULT_BYTES and ranks > 1:
        return Finding(Level.PROBLEM, check, f"{SHARED_MEMORY} has {size}, a container's default: {way_out}")
    if limits.shared_free_bytes < wanted:
        message = f"{SHARED_MEMORY} has {free} of {size} free, {ranks} ranks may want {format_bytes(wanted)}"
        return Finding(Level.WARNING, check, f"{message}: {way_out}")
    return Finding(Level.OK, check, f"{SHARED_MEMORY} has {free} of {size} free")


def open_files_finding(cluster: Cluster, limits: Limits, *, ranks: int) -> Finding:
    """Check open files, which include sockets: with too few, NCCL and data loaders fail at the start or later."""
    check = "open files"
    if limits.open_files is None:
        return Finding(Level.OK, check, "unlimited")
    # The agent has pipes of its ranks, the coordinator two descriptors per node.
    wanted = max(FEWEST_FILES, FILES_PER_RANK * ranks, 2 * cluster.num_nodes + FEWEST_FILES)
    if limits.open_files < wanted:
        level = Level.PROBLEM if limits.open_files < FEWEST_FILES else Level.WARNING
        message = f"at most {limits.open_files} (ulimit -Hn), {ranks} ranks here may want {wanted}"
        return Finding(level, check, f"{message}: raise nofile in limits.conf or slurmd's LimitNOFILE")
    return Finding(Level.OK, check, f"up to {limits.open_files}")


def locked_memory_finding(limits: Limits) -> Finding:
    """Check locked memory, which RDMA pins: with a low limit NCCL fails at its first connection."""
    if limits.locked_bytes is None:
        return Finding(Level.OK, "locked memory", "unlimited")
    message = f"limited to {format_bytes(limits.locked_bytes)} (ulimit -l), but RDMA pins more"
    return Finding(
        Level.WARNING,
        "locked memory",
        f"{message}: memlock unlimited in limits.conf, or slurmd's LimitMEMLOCK=infinity",
    )
