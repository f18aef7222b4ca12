"""One simulated node of a job on loopback: `node_driver.py RUN_DIR SCRIPT JSON [ARGS]`.

JSON: {"hosts": [...], "name": own host name, "host", "port": the coordinator's, "ranks": per node, "launch": {}};
with "planned": true the plan is in the run folder already.
Node n of the plan has the address 127.0.0.(n+1); a name that is not in hosts is a spare, with the address 127.0.0.99.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shapes import cluster, job

from launcher import env
from launcher.agent.node import run_node
from launcher.agent.settings import LaunchSettings
from launcher.errors import LauncherError
from launcher.fast_exit import end_process
from launcher.layout import Layout
from launcher.planner import Plan, read_plan, write_plan
from launcher.planner.record import Program, RunOptions
from launcher.rendezvous.authentication import SECRET
from launcher.rendezvous.config import RendezvousConfig, node_of_host
from launcher.run.folder import create_run_folder


def plan_of(hosts: tuple[str, ...], ranks: int, program: Program) -> Plan:
    machines = cluster(nodes=len(hosts), domains=(ranks,))
    machines = replace(machines, node=replace(machines.node, cores=ranks))
    layout = Layout(tp=1, pp=1, dp=ranks * len(hosts), layer_split=(24,))
    return Plan(job(on=machines), layout, {}, (), RunOptions(program=program), hosts=hosts)


def local_address(coordinator: str, node: int | None) -> str | None:
    """Each node's own address of 127.0.0.0/8; IPv6 has but one of loopback."""
    return f"127.0.0.{99 if node is None else node + 1}" if coordinator.startswith("127.") else None


def main(run_dir: str, script: str, options: str, *args: str) -> int:
    given = json.loads(options)
    hosts, name = tuple(given["hosts"]), given["name"]
    node = node_of_host(name, hosts)
    folder = create_run_folder(Path(run_dir))
    program = Program(kind="script", target=script, args=args)
    plan = read_plan(folder.plan) if given.get("planned") else plan_of(hosts, given["ranks"], program)
    if not given.get("planned"):
        write_plan(plan, folder.plan)
    rendezvous = RendezvousConfig(
        run_id="simulated",
        host=given["host"],
        port=given["port"],
        num_nodes=len(hosts),
        node=node,
        name=name,
        secret=env.take(SECRET) or "",
        hosts=hosts,
        local_address=local_address(given["host"], node),
    )
    try:
        return run_node(
            plan,
            folder=folder,
            launch=LaunchSettings.from_config(given.get("launch", {})),
            node=node,
            rendezvous=rendezvous,
        )
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    end_process(main(*sys.argv[1:]))
