"""The torchrun command of each host, with our rendezvous in the hosts' order, for nodes that are started otherwise."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from launcher.agent.settings import LaunchSettings
from launcher.planner import Plan
from launcher.planner.record import Program
from launcher.rendezvous.authentication import SECRET
from launcher.rendezvous.config import BACKEND, derived_port, endpoint, split_endpoint
from launcher.ssh.hosts import Host

KINDS = {"script": (), "module": ("-m",), "program": ("--no-python",)}
INTRODUCTION = (
    f"# Make a secret once, as with `openssl rand -hex 32`, and give it to every node first: export {SECRET}=…"
)


def torchrun_lines(plan: Plan, program: Program, launch: LaunchSettings, hosts: Sequence[Host], *, run_id: str) -> str:
    """A command for each node of the plan, each after a line that says where it is to be typed."""
    host, port = split_endpoint(launch.coordinator) if launch.coordinator else (hosts[0].name, None)
    meeting = endpoint(host, port or derived_port(run_id))
    lines = [INTRODUCTION]
    for node, where in enumerate(hosts):
        names = "+".join(host.name for host in hosts)
        argv = (
            "torchrun",
            f"--rdzv-backend={BACKEND}",
            f"--rdzv-endpoint={meeting}",
            f"--rdzv-id={run_id}",
            f"--rdzv-conf=hosts={names},node={node}",
            f"--nnodes={len(hosts)}",
            f"--nproc-per-node={plan.placement.ranks_on(node)}",
            f"--max-restarts={launch.max_restarts}",
            *KINDS[program.kind],
            program.target,
            *program.args,
        )
        lines += [f"# node {node}, on {where.destination}", shlex.join(argv)]
    return "\n".join(lines)
