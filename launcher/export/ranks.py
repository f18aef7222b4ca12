"""Placement of a plan's ranks: the rank file, the hosts, and the script that starts one node's ranks in that order."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from launcher.errors import InputError
from launcher.files import user_path
from launcher.layout.degrees import AXES, degree_variables
from launcher.planner.record import Plan

PORT = 29500
RANKS_FILE, HOSTS_FILE, START_FILE = "ranks.csv", "hosts", "start.sh"
# The variables that a node script sets before its command.
NODE, ADDRESS, PORT_VARIABLE, SCRIPT = "$NODE_RANK", "$MASTER_ADDR", "$MASTER_PORT", "$SCRIPT"


def rank_file(plan: Plan) -> str:
    """One line a rank: its node, host, local rank, GPU and coordinate; the hosts are empty until they are known."""
    grid, placement = plan.grid, plan.placement
    lines = ["rank,node,host,local_rank,gpu," + ",".join(AXES)]
    for rank in range(grid.size):
        slot, place = placement.slot(rank), grid.coordinate(rank)
        host = plan.hosts[slot.node] if plan.hosts else ""
        values = (rank, slot.node, host, slot.local_rank, slot.gpu, *(place[axis] for axis in AXES))
        lines.append(",".join(map(str, values)))
    return "\n".join(lines) + "\n"


def hosts_file(plan: Plan) -> str:
    """The hosts in the plan's order, one a line."""
    return "".join(f"{host}\n" for host in plan.hosts)


def check_hosts(plan: Plan, target: str) -> None:
    """Raise InputError if the plan does not name its hosts."""
    if not plan.hosts:
        raise InputError(
            f"to={target} names hosts, and this plan has none yet: add launch=ssh launch.hosts=[node1,node2] with a "
            f"host for each node of the plan ({plan.placement.num_nodes}), or export a run that has started: "
            f"launcher export RUN to={target}"
        )


def shared_files(plan: Plan) -> dict[str, str]:
    """The files that every folder has: where the ranks are."""
    return {RANKS_FILE: rank_file(plan)} | ({HOSTS_FILE: hosts_file(plan)} if plan.hosts else {})


def node_script(
    plan: Plan,
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
    default_script: str = "train.py",
) -> str:
    """A script that starts the ranks of the node that it runs on, after the lines `before`.

    Words of the command that begin with $ are the shell's. `default_script` is what runs where the plan has none.
    """
    lines = [
        "#!/usr/bin/env bash",
        "# Starts the ranks of this node. Run it on every node; NODE_RANK is the node's number in the plan, from 0.",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
        *_node_number(plan),
        f"MASTER_PORT=${{MASTER_PORT:-{PORT}}}",
        f"SCRIPT=${{SCRIPT:-{shlex.quote(script(plan, default_script))}}}",
        *(f"export {name}={quoted(value)}" for name, value in {**gpu_order(plan), **(environment or {})}.items()),
        *before,
        "exec " + " \\\n  ".join(options(command)) + ' "$@"',
    ]
    return "\n".join(lines) + "\n"


def script(plan: Plan, default: str) -> str:
    """The script that the plan's user trains with, else `default`."""
    given = plan.options.program
    return str(user_path(given.target).resolve()) if given and given.kind == "script" else default


def gpu_order(plan: Plan) -> dict[str, str]:
    """The variable that puts local rank i on the plan's i-th GPU, where that is not GPU i."""
    order = plan.job.cluster.node.gpu_order[: plan.placement.ranks_per_node]
    plain = order == tuple(range(len(order)))
    return (
        {} if plain or plan.job.cluster.node.gpu.kind != "cuda" else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, order))}
    )


def options(command: Sequence[str]) -> list[str]:
    """Words as lines: an option with its values on one, quoted for the shell."""
    lines: list[str] = []
    for word in command:
        if lines and word != SCRIPT and not word.startswith("-") and (lines[-1].startswith("--") or len(lines) == 1):
            lines[-1] += f" {quoted(word)}"
        else:
            lines.append(quoted(word))
    return lines


def quoted(word: str) -> str:
    """A word quoted for the shell; one that begins with $ is a variable of the script, ${...[@]} several words."""
    return f'"{word}"' if word.startswith("$") else shlex.quote(word)


def _node_number(plan: Plan) -> list[str]:
    """The lines that find out which node this is, and where the first one is."""
    if plan.placement.num_nodes == 1:
        return ["NODE_RANK=${NODE_RANK:-0}", "MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}"]
    if plan.hosts:
        return [
            "# The hosts are in the plan's order: a host's line is its node's number.",
            f'NODE_RANK=${{NODE_RANK:-$(grep -nxE "$(hostname -s)([.].*)?" {HOSTS_FILE} | head -n1 | cut -d: -f1 '
            "| awk '{print $1 - 1}')}",
            f': "${{NODE_RANK:?$(hostname -s) is not in {HOSTS_FILE}: set NODE_RANK}}"',
            f"MASTER_ADDR=${{MASTER_ADDR:-$(head -n1 {HOSTS_FILE})}}",
        ]
    return [
        'if [ -n "${SLURM_NODEID:-}" ]; then',
        "  NODE_RANK=${NODE_RANK:-$SLURM_NODEID}",
        '  MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)}',
        "fi",
        ': "${NODE_RANK:?set it to the number of this node in the plan, from 0}"',
        ': "${MASTER_ADDR:?set it to the host of node 0}"',
    ]


def torchrun(plan: Plan) -> list[str]:
    """The words that start a node's ranks by torchrun; the static rendezvous keeps the order of the nodes."""
    return [
        "torchrun",
        "--nnodes", str(plan.placement.num_nodes),
        "--nproc-per-node", str(plan.placement.ranks_per_node),
        "--node-rank", NODE,
        "--master-addr", ADDRESS,
        "--master-port", PORT_VARIABLE,
    ]  # fmt: skip


def degrees(plan: Plan) -> dict[str, str]:
    """The degrees as the variables that `launcher run` gives its ranks too."""
    return degree_variables(plan.layout)
