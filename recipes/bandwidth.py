"""Measure every node's bandwidth inside and towards others, and name the slow ones.

Started by `launcher run` or `launcher submit recipe=bandwidth` in every rank; ends with exit code 1 and the --exclude
to use where a node is slow. Inside a node: an all-reduce of its ranks. Between nodes: rounds in which each node is
paired with another one and all their ranks exchange buffers at once. The last line on stdout is one JSON document.

Has run with gloo only, on four Slurm nodes of two CPU ranks that share a machine: no GPU has run it yet.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median_high

import torch
import torch.distributed as dist

from launcher.errors import JobFailed
from launcher.plan.options import BandwidthOptions
from launcher.worker import session
from launcher.worker.measure import from_all_ranks, seconds_per_call
from launcher.worker.report import write_result

MESSAGE_BYTES = {"cuda": 2**28, "cpu": 2**22}


@dataclass(frozen=True)
class NodeRates:
    """GB/s of one node: bus bandwidth inside it, and the best that it reached towards another node, each way.

    The best, because a meeting with a slow node says nothing about this one. None where there is nothing to measure.
    """

    host: str
    node: int
    inside_gbytes_per_s: float | None
    between_gbytes_per_s: float | None


def main() -> None:
    with session.start() as run:
        options = BandwidthOptions.from_config(run.plan.config["recipe"])
        num_bytes = options.num_bytes or MESSAGE_BYTES[run.device.type]
        node, ranks = run.rank_env.node, ranks_by_node(run)
        groups = [dist.new_group(members) for members in ranks]  # every rank makes every group
        inside_s = time_inside(groups[node], num_bytes, run.device, options) if len(ranks[node]) > 1 else None
        between_s = [
            time_exchange(run.rank, ranks, partners.get(node), num_bytes, run.device, options)
            for partners in rounds(len(ranks), options.rounds)
        ]
        everyone = from_all_ranks((socket.gethostname(), node, inside_s, between_s))
        rates = [node_rates([e for e in everyone if e[1] == n], num_bytes) for n in range(len(ranks))]
        for found in rates:
            run.say(
                f"{found.host}: inside {told(found.inside_gbytes_per_s)}, between {told(found.between_gbytes_per_s)}"
            )
        slow = slow_nodes(rates, threshold=options.threshold)
        exclude = sorted({rates[n].host for n in slow})
        document = {
            "recipe": "bandwidth",
            "bytes": num_bytes,
            "nodes": [asdict(found) for found in rates],
            "slow": {rates[n].host: reasons for n, reasons in slow.items()},
            "exclude": exclude,
        }
        if run.is_main:
            write_result(document, run.run_dir)
            print(json.dumps(document), flush=True)
        if exclude:
            reasons = "; ".join(f"{rates[n].host}: {', '.join(found)}" for n, found in slow.items())
            raise JobFailed(f"slow nodes ({reasons}): leave them out with sbatch --exclude={','.join(exclude)}")


def ranks_by_node(run: session.Session) -> list[list[int]]:
    """The ranks of each node of the plan."""
    placement = run.plan.placement
    members: list[list[int]] = [[] for _ in range(placement.num_nodes)]
    for rank in range(run.world_size):
        members[placement.slot(rank).node].append(rank)
    return members


def rounds(num_nodes: int, wanted: int) -> list[dict[int, int]]:
    """Pairings of nodes, node → partner: the circle method, in which no two nodes meet twice. An odd one sits out."""
    size = num_nodes + num_nodes % 2
    found = []
    for turn in range(min(wanted, size - 1) if num_nodes > 1 else 0):
        circle = [0, *((turn + i) % (size - 1) + 1 for i in range(size - 1))]
        pairs = [(circle[i], circle[size - 1 - i]) for i in range(size // 2)]
        real = [(a, b) for a, b in pairs if a < num_nodes and b < num_nodes]
        found.append(dict(real) | {b: a for a, b in real})
    return found


def time_inside(group: dist.ProcessGroup, num_bytes: int, device: torch.device, options: BandwidthOptions) -> float:
    """Seconds of an all-reduce over the ranks of this node."""
    buffer = torch.zeros(num_bytes // 4, device=device)
    dist.barrier(group=group)
    return seconds_per_call(
        lambda: dist.all_reduce(buffer, group=group),
        device=device,
        warmup=options.warmup,
        iterations=options.iterations,
    )


def time_exchange(
    rank: int,
    ranks: Sequence[Sequence[int]],
    partner: int | None,
    num_bytes: int,
    device: torch.device,
    options: BandwidthOptions,
) -> float | None:
    """Seconds in which this rank and the same one of the partner node send each other a buffer; None without one."""
    node = next(i for i, members in enumerate(ranks) if rank in members)
    local = ranks[node].index(rank)
    dist.barrier()  # all pairs of a round at once: they share leaves and spine as in a job
    if partner is None or local >= len(ranks[partner]):
        return None
    other = ranks[partner][local]
    given, taken = torch.zeros(num_bytes // 4, device=device), torch.empty(num_bytes // 4, device=device)

    def exchange() -> None:
        for work in dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, given, other), dist.P2POp(dist.irecv, taken, other)]
        ):
            work.wait()

    return seconds_per_call(exchange, device=device, warmup=options.warmup, iterations=options.iterations)


def node_rates(members: Sequence[tuple[str, int, float | None, list[float | None]]], num_bytes: int) -> NodeRates:
    """One node's rates out of what its ranks timed: a node is as fast as its slowest rank."""
    host, node = members[0][:2]
    inside = [found[2] for found in members if found[2] is not None]
    n = len(members)
    rate = num_bytes / max(inside) / 1e9 * 2 * (n - 1) / n if inside else None
    meetings = []
    for turn in range(len(members[0][3])):
        times = [seconds for found in members if (seconds := found[3][turn]) is not None]
        if times:
            meetings.append(len(times) * num_bytes / max(times) / 1e9)
    return NodeRates(host, node, rate, max(meetings, default=None))


def slow_nodes(rates: Sequence[NodeRates], *, threshold: float) -> dict[int, list[str]]:
    """Node → what it is slow at: below `threshold` of the median node (of two nodes, of the faster)."""
    slow: dict[int, list[str]] = {}
    for name in ("inside", "between"):
        values = {found.node: getattr(found, f"{name}_gbytes_per_s") for found in rates}
        known = {node: value for node, value in values.items() if value is not None}
        usual = median_high(known.values()) if known else 0.0
        for node, value in known.items():
            if value < threshold * usual:
                slow.setdefault(node, []).append(f"{name} {value:.3g} of {usual:.3g} GB/s")
    return slow


def told(rate: float | None) -> str:
    return "nothing to measure" if rate is None else f"{rate:.3g} GB/s"


if __name__ == "__main__":
    session.main(main)
