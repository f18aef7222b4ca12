"""The preflight of one node of a Slurm job: `python -m launcher.slurm.check RUN_FOLDER`, once per node by srun.

Prints one line of JSON for the driver: the findings of launcher/preflight/checks.py with Slurm's name of the node.
"""

from __future__ import annotations

import ipaddress
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher import env
from launcher.agent.launch import read_launch
from launcher.errors import LauncherError
from launcher.planner import read_plan
from launcher.preflight.checks import preflight
from launcher.rendezvous.config import derived_ports
from launcher.run.folder import RunFolder
from launcher.slurm.heard import marked
from launcher.slurm.node import coordinator

CLOCK_LINES, CLOCK_EVERY_S = 2, 0.05


def main(argv: Sequence[str]) -> int:
    """Print this node's findings; return 0 even if they are bad: the driver decides."""
    try:
        folder = RunFolder(Path(argv[0]))
        plan = read_plan(folder.present_plan)
        host = env.get("SLURMD_NODENAME")
        ports = _ports(folder) if plan.hosts and host == plan.hosts[0] and len(plan.hosts) > 1 else ()
        ranks = plan.placement.ranks_per_node
        findings = preflight(plan.job.cluster, run_folder=folder.path, ports=ports, ranks=ranks)
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    if _on_one_machine():
        findings = [finding for finding in findings if finding.check != "name"]
    mine = [replace(finding, host=host or finding.host) for finding in findings]
    print(marked(host or mine[0].host, mine, at=time.time()), flush=True)
    for _ in range(CLOCK_LINES):  # only for the clock: a line may be delayed
        time.sleep(CLOCK_EVERY_S)
        print(marked(host or mine[0].host, (), at=time.time()), flush=True)
    return 0


def _ports(folder: RunFolder) -> tuple[int, ...]:
    _, port = coordinator(read_launch(folder.launch).settings)
    return (port,) if port is not None else derived_ports(env.get(env.RUN_ID) or "")


def _on_one_machine() -> bool:
    """Return whether Slurm's address of the first node is loopback: then all nodes are on this machine."""
    try:
        return ipaddress.ip_address(env.get(env.COORDINATOR) or "").is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
