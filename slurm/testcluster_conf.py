"""The configuration files of slurm/testcluster."""

from __future__ import annotations

import argparse
import os
import socket
from dataclasses import dataclass
from pathlib import Path

# The reasons for what is not obvious:
#   cred_expire     a requeued job starts again cred_expire + 1 s later at the earliest (default 120, at least 5). It
#                   must exceed KillWait + 2: until then the srun of the old start may still kill "step 0" of the new.
#   config_overrides  more CPUs and memory than the machine has.
#   NoCtldInAddrAny  slurmctld listens on loopback only; not with --network, where addresses differ. With the same
#                   for slurmd, srun hangs: slurmd and srun listen on all addresses, as on any cluster, and talk only
#                   to holders of the munge key.
#   CR_Core         with CR_Core_Memory an overlapping step is refused for lack of memory.
SLURM_CONF = """\
ClusterName=lab
SlurmctldHost={host}({controller})
SlurmctldPort={port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={dir}/run/munge.socket,cred_expire={cred_expire}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/spool/%n/slurmd.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
{accounting}
JobCompType=jobcomp/filetxt
JobCompLoc={dir}/log/jobcomp.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
TopologyPlugin=topology/tree
{listen}
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout={slurmd_timeout}
MessageTimeout=10
TCPTimeout=2
KillWait={kill_wait}
InactiveLimit=0
MinJobAge=3600
UnkillableStepTimeout=30
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
{extra}
"""
NODE_CONF = (
    "NodeName={name} NodeHostName={host} NodeAddr={address} Port={port} CPUs={cpus} Boards=1 Sockets=2 "
    "CoresPerSocket={cores} ThreadsPerCore=1 RealMemory={memory} Gres=gpu:{gpu_type}:{gpus} State=UNKNOWN"
)
# cgroup/v1 does nothing until it is used, so it also starts where there is no such mount; autodetection is fatal there.
CGROUP_CONF = (
    "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\nConstrainDevices=no\n"
)
LOOPBACK = "127.0.0.1"
NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"


@dataclass(frozen=True)
class Shape:
    """What the cluster consists of: node names by leaf, their ports and addresses, the controller's address."""

    leaves: list[list[str]]
    ports: list[int]
    addresses: list[str]
    controller: str
    proctrack: str
    accounting: str

    @property
    def names(self) -> list[str]:
        return [name for leaf in self.leaves for name in leaf]


def write_conf(folder: Path, options: argparse.Namespace, shape: Shape) -> None:
    """Write every file under `folder`/etc."""
    host = socket.gethostname().split(".")[0]
    types = gpu_types(options.gpu_type or [])
    fixed = {"host": host, "cpus": options.cpus, "cores": options.cpus // 2, "memory": 64000, "gpus": options.gpus}
    nodes = [
        NODE_CONF.format(name=name, address=address, port=port, gpu_type=types.get(name, "a100"), **fixed)
        for name, address, port in zip(shape.names, shape.addresses, shape.ports, strict=True)
    ]
    text = SLURM_CONF.format(
        dir=folder,
        host=host,
        controller=shape.controller,
        listen="CommunicationParameters=NoCtldInAddrAny" if shape.controller == LOOPBACK else "",
        port=options.port,
        user=os.environ.get("USER") or "root",
        proctrack=shape.proctrack,
        accounting=shape.accounting,
        cred_expire=options.kill_wait + 4,
        slurmd_timeout=options.slurmd_timeout,
        kill_wait=options.kill_wait,
        grace=options.grace,
        nodes="\n".join(nodes),
        extra=Path(options.extra_conf).read_text() if options.extra_conf else "",
    )
    switches = [f"SwitchName=leaf{i + 1} Nodes={','.join(leaf)}" for i, leaf in enumerate(shape.leaves)]
    spine = f"SwitchName=spine Switches=leaf[1-{len(shape.leaves)}]"
    known = [f"{address} {name}" for name, address in zip(shape.names, shape.addresses, strict=True)]
    nsswitch = [line for line in Path("/etc/nsswitch.conf").read_text().splitlines() if not line.startswith("hosts:")]
    devices = f"File={folder}/dev/nvidia[0-{options.gpus - 1}]"
    files = {
        "slurm.conf": [text],
        "gres.conf": [f"NodeName={n} Name=gpu Type={types.get(n, 'a100')} {devices}" for n in shape.names],
        "topology.conf": [*switches, spine],
        "cgroup.conf": [CGROUP_CONF],
        "hosts": ["127.0.0.1 localhost", f"{shape.controller} {host}", "::1 ip6-localhost", *known],
        "nsswitch.conf": [*nsswitch, "hosts: files"],
        "nodes": shape.names,
    }
    for name, lines in files.items():
        (folder / "etc" / name).write_text("\n".join(lines) + "\n")


def gpu_types(words: list[str]) -> dict[str, str]:
    """Node → GRES type, out of words like node3,node4=h100."""
    pairs = [word.partition("=")[::2] for word in words]
    return {node: gpu_type for nodes, gpu_type in pairs for node in nodes.split(",")}
