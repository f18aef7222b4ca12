"""Our rendezvous for torchrun: reads the nodes and their order from its parameters."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

from launcher import env
from launcher.console import notify
from launcher.errors import InputError
from launcher.planner import read_plan
from launcher.rendezvous.authentication import SECRET
from launcher.rendezvous.config import RendezvousConfig, node_of_host, split_endpoint
from launcher.rendezvous.plan_ordered import PlanOrdered
from launcher.run.folder import plan_file


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Return the handler for torchrun's parameters; raises InputError with what is missing."""
    hosts = _hosts(params)
    name = str(params.get("host") or params.local_addr or socket.gethostname())
    if hosts and len(hosts) != params.max_nodes:
        raise InputError(
            f"--nnodes={params.max_nodes}, but the plan has {len(hosts)} nodes: give --nnodes={len(hosts)}"
        )
    host, port = split_endpoint(params.endpoint) if params.endpoint else (hosts[0] if hosts else "", None)
    if not host:
        raise InputError("no rendezvous endpoint: give --rdzv-endpoint=HOST[:PORT], the plan's first node")
    node = _node(params, hosts, name)
    return PlanOrdered(
        RendezvousConfig(
            run_id=params.run_id,
            host=host,
            port=port,
            num_nodes=params.max_nodes,
            min_nodes=params.min_nodes,
            node=node,
            name=name,
            secret=_secret(params, node),
            hosts=hosts,
            local_address=params.local_addr,
            join_timeout_s=float(params.get("join_timeout", 600)),
            rejoin_timeout_s=float(params.get("rejoin_timeout", 120)),
            last_call_s=float(params.get("last_call", 30)),
            spare_wait_s=float(params.get("spare_wait", 10)),
        )
    )


def _secret(params: RendezvousParameters, node: int | None) -> str:
    """Return LAUNCHER_SECRET; the first node, which coordinates, warns if there is none."""
    secret = env.get(SECRET)
    if secret is None and node == 0 and params.max_nodes > 1:
        notify(
            f"{SECRET} is not set: anyone who can reach this node's port and knows the run id can join or end the job; "
            f"set it to the same value on every node, for example from `openssl rand -hex 32`"
        )
    return secret or ""


def _hosts(params: RendezvousParameters) -> tuple[str, ...]:
    if given := params.get("hosts"):
        return tuple(str(given).split("+"))
    if path := params.get("plan"):
        return read_plan(plan_file(Path(path))).hosts
    return ()


def _node(params: RendezvousParameters, hosts: Sequence[str], name: str) -> int | None:
    given = params.get_as_int("node")
    if given is not None:
        return given
    node = node_of_host(name, hosts)
    if node is None and not hosts:
        raise InputError(
            "the order of the nodes is not known: give --rdzv-conf=plan=RUN_FOLDER (with hosts), "
            "hosts=A+B+C, or node=N on each node"
        )
    return node
