"""The job's allocation: hosts, leaf switches, addresses. Read inside the job, at its start."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from launcher import env
from launcher.cluster import commands
from launcher.cluster.hostlist import compress_hostlist, expand_hostlist
from launcher.cluster.readers_slurm import SlurmTopology, read_slurm_nodes, read_slurm_topology
from launcher.errors import InputError
from launcher.text import whole_number

PROBE_TIMEOUT_S = 3.0
_SHELL_STEP = str(2**32 - 6)  # the step of salloc's own shell, with LaunchParameters=use_interactive_step


@dataclass(frozen=True)
class Allocation:
    """The job as seen by its batch step. `restart` is 0 at the first start, then Slurm's count of requeues."""

    job_id: str
    hosts: tuple[str, ...]
    restart: int


def read_allocation() -> Allocation:
    """Read the allocation of this process's job; raises InputError outside of a job."""
    job_id, nodelist = env.get("SLURM_JOB_ID"), env.get("SLURM_JOB_NODELIST")
    if not job_id or not nodelist:
        raise InputError(
            "this is not a Slurm job (SLURM_JOB_ID is not set): use `launcher submit`, or sbatch slurm/train.sbatch"
        )
    return Allocation(_name(job_id), expand_hostlist(nodelist), whole_number(env.get("SLURM_RESTART_COUNT")) or 0)


def owns_allocation() -> bool:
    """Return whether this is the shell of an allocation (salloc, a batch script), not a task that srun started."""
    in_job = env.get("SLURM_JOB_ID") and env.get("SLURM_JOB_NODELIST")
    return bool(in_job) and env.get("SLURM_STEP_ID") in (None, _SHELL_STEP)


def has_other_nodes() -> bool:
    """Return whether this shell's allocation has other nodes."""
    return owns_allocation() and (len(read_allocation().hosts) > 1 or env.get("SLURMD_NODENAME") is None)


def _name(job_id: str) -> str:
    """Return the job's id; for an array task as 17_2: the id of the last task is that of the whole array.

    The variables may be those of another job from which this one was submitted, so Slurm is asked.
    """
    array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    if not (array and task):
        return job_id
    record = commands.run(("scontrol", "show", "job", "-o", job_id)).text
    return job_id if record is not None and f"ArrayJobId={array} " not in record else f"{array}_{task}"


def given_cpus() -> int:
    """Return the smallest number of CPUs that the job has on a node; 0 if Slurm does not say."""
    counts = re.findall(r"(?:^|,)([0-9]{1,9})", env.get("SLURM_JOB_CPUS_PER_NODE") or "")  # as 72(x2),36
    return min(map(int, counts), default=0)


def read_topology() -> tuple[SlurmTopology | None, str | None]:
    """Return Slurm's switches, or None and the reason."""
    said = commands.run(("scontrol", "show", "topology"))
    if said.text is None:
        return None, said.problem
    try:
        return read_slurm_topology(said.text), None
    except InputError as error:
        return None, str(error)


def node_address(host: str) -> str:
    """Return the address of `host` for other nodes: Slurm's, if numeric, else its name."""
    record = commands.run(("scontrol", "show", "node", "-o", host)).text or ""
    match = re.search(r"\bNodeAddr=(\S+)", record)
    try:
        return str(ipaddress.ip_address(match[1] if match else host))
    except ValueError:
        return host


def gpu_types(hosts: Sequence[str]) -> dict[str, str | None]:
    """Map hosts to the GRES type of their GPUs; None if Slurm has none."""
    said = commands.run(("scontrol", "show", "node", "-o", compress_hostlist(hosts)))
    records = read_slurm_nodes(said.text) if said.text else ()
    found = {name: record.gpu_type for record in records for name in record.names}
    return {host: found.get(host) for host in hosts}


def lost_nodes(hosts: Sequence[str]) -> tuple[str, ...]:
    """Return hosts with an unreachable slurmd, or that Slurm has already marked down.

    Slurm itself needs SlurmdTimeout (300 s by default) to notice a dead node; the daemon's port shows it at once.
    """
    text = commands.run(("scontrol", "show", "node", "-o", compress_hostlist(hosts))).text or ""
    default_port = _slurmd_port()
    lost = []
    for record in text.splitlines():
        fields = dict(re.findall(r"\b(NodeName|NodeAddr|Port|State)=(\S+)", record))
        down = re.match(r"(DOWN|FAIL|.*NOT_RESPONDING|.*\*)", fields.get("State", ""))
        port = whole_number(fields.get("Port")) or default_port
        if down or not _answers(fields.get("NodeAddr", ""), port):
            lost.append(fields.get("NodeName", "?"))
    return tuple(lost)


def removed_nodes(job_id: str, hosts: Sequence[str]) -> tuple[str, ...]:
    """Return dead hosts that Slurm has removed from a running job (sbatch --no-kill).

    Asks slurmctld once, and no nodes.
    """
    state, _, nodelist = (commands.run(("squeue", "-h", "-j", job_id, "-o", "%T|%N")).text or "").strip().partition("|")
    left = expand_hostlist(nodelist) if state == "RUNNING" and nodelist else hosts
    return tuple(host for host in hosts if host not in left)


def _slurmd_port() -> int:
    match = re.search(r"SlurmdPort\s*=\s*([0-9]{1,5})", commands.run(("scontrol", "show", "config")).text or "")
    return int(match[1]) if match else 6818  # Slurm's default


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S):
            return True
    except OSError:
        return False
