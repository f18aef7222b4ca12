"""Measure every node's bandwidth inside and to others, and name the slow ones.

Started by `launcher run|submit recipe=bandwidth`, by `launcher check`, or by a batch job before its own ranks
(launch.check_bandwidth). If a node is slow, it ends with exit code 1 and prints the --exclude to use.
Inside a node: an all-reduce of its ranks. Between nodes: rounds in which each node is paired with another one, and all
their ranks exchange buffers at once. Messages are smaller over slow links, so that it always ends within a minute. The
last line on stdout is one JSON document.

It has run only with gloo, on Slurm nodes of two CPU ranks that share a machine, not on a GPU yet.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from statistics import median_high

import torch
import torch.distributed as dist

from launcher.cluster import Cluster
from launcher.errors import JobFailed
from launcher.planner.options import BandwidthOptions
from launcher.run.result import BandwidthResult, NodeRates, write_result
from launcher.worker import session
from launcher.worker.metrics.measure import from_all_ranks, seconds_per_call

MESSAGE_BYTES = {"cuda": 2**28, "cpu": 2**22}
GROWTH = 8  # messages grow by this factor up to the wanted size, unless the next one would take too long
MEASURE_S = 3.0  # for the calls of one measurement; seven rounds take about half a minute at most


def main() -> None:
    with session.start() as run:
        options = run.recipe_options(BandwidthOptions)
        num_bytes = options.num_bytes or MESSAGE_BYTES[run.device.type]
        node, ranks = run.rank_env.node, ranks_by_node(run)
        groups = [dist.new_group(members) for members in ranks]  # every rank creates every group
        inside = inside_rate(groups[node], num_bytes, run.device, options) if len(ranks[node]) > 1 else None
        between = [
            exchange_rate(run.rank, ranks, partners.get(node), num_bytes, run.device, options)
            for partners in rounds(len(ranks), options.rounds)
        ]
        everyone = from_all_ranks((host_of(run, node), node, inside, between))
        rates = [node_rates([e for e in everyone if e[1] == n]) for n in range(len(ranks))]
        for found in rates:
            run.say(
                f"{found.host}: inside {shown(found.inside_gbytes_per_s)}, between {shown(found.between_gbytes_per_s)}"
            )
        slow = slow_nodes(rates, run.plan.job.cluster, threshold=options.threshold)
        exclude = sorted({rates[n].host for n in slow})
        by_host = {rates[n].host: reasons for n, reasons in slow.items()}
        if run.is_main:
            result = BandwidthResult("bandwidth", num_bytes, tuple(rates), by_host, tuple(exclude))
            write_result(result.to_dict(), run.folder.result, short=result.short())
        if exclude:
            reasons = "; ".join(f"{rates[n].host}: {', '.join(found)}" for n, found in slow.items())
            raise JobFailed(f"slow nodes ({reasons}): exclude them with sbatch --exclude={','.join(exclude)}")


def ranks_by_node(run: session.Session) -> list[list[int]]:
    """Return the ranks of each node of the plan."""
    placement = run.plan.placement
    members: list[list[int]] = [[] for _ in range(placement.num_nodes)]
    for rank in range(run.world_size):
        members[placement.slot(rank).node].append(rank)
    return members


def rounds(num_nodes: int, wanted: int) -> list[dict[int, int]]:
    """Return pairings, node → partner, by the circle method: no pair occurs twice. An odd node pauses."""
    size = num_nodes + num_nodes % 2
    found = []
    for turn in range(min(wanted, size - 1) if num_nodes > 1 else 0):
        circle = [0, *((turn + i) % (size - 1) + 1 for i in range(size - 1))]
        pairs = [(circle[i], circle[size - 1 - i]) for i in range(size // 2)]
        real = [(a, b) for a, b in pairs if a < num_nodes and b < num_nodes]
        found.append(dict(real) | {b: a for a, b in real})
    return found


def host_of(run: session.Session, node: int) -> str:
    """Return a node's name for --exclude: the plan's (which is Slurm's), if there is one."""
    return run.plan.hosts[node] if run.plan.hosts else socket.gethostname()


def inside_rate(group: dist.ProcessGroup, num_bytes: int, device: torch.device, options: BandwidthOptions) -> float:
    """Return this rank's bytes/s of an all-reduce over the ranks of its node."""

    def agreed(seconds: float) -> float:
        slowest = torch.tensor(seconds, device=device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX, group=group)
        return float(slowest)

    def all_reduce(buffer: torch.Tensor) -> None:
        dist.all_reduce(buffer, group=group)

    dist.barrier(group=group)
    return rate(all_reduce, agreed, num_bytes, device, options)


def exchange_rate(
    rank: int,
    ranks: Sequence[Sequence[int]],
    partner: int | None,
    num_bytes: int,
    device: torch.device,
    options: BandwidthOptions,
) -> float | None:
    """Return bytes/s each way between this rank and its counterpart on the partner node; None without one."""
    node = next(i for i, members in enumerate(ranks) if rank in members)
    local = ranks[node].index(rank)
    dist.barrier()  # all pairs of a round run at once: they share leaves and spine as in a job
    if partner is None or local >= len(ranks[partner]):
        return None
    other = ranks[partner][local]

    def exchange(given: torch.Tensor) -> torch.Tensor:
        taken = torch.empty_like(given)
        works = [dist.P2POp(dist.isend, given, other), dist.P2POp(dist.irecv, taken, other)]
        for work in dist.batch_isend_irecv(works):
            work.wait()
        return taken

    def agreed(seconds: float) -> float:
        return max(seconds, float(exchange(torch.tensor([seconds], device=device))))

    return rate(exchange, agreed, num_bytes, device, options)


def rate(
    call: Callable[[torch.Tensor], object],
    agreed: Callable[[float], float],
    num_bytes: int,
    device: torch.device,
    options: BandwidthOptions,
) -> float:
    """Return bytes/s of a call with a buffer of `num_bytes`, or a smaller one if that would take too long.

    Growing messages also serve as warm-up. `agreed` combines the times of all participants into one, so that all choose
    the same size.
    """

    def seconds(size: int, *, iterations: int) -> float:
        buffer = torch.zeros(size // 4, device=device)
        return seconds_per_call(lambda: call(buffer), device=device, warmup=0, iterations=iterations)

    agreed(0.0)  # the first call connects the ranks
    size = max(4, num_bytes // GROWTH**2)
    taken_s = agreed(seconds(size, iterations=1))
    while size < num_bytes and taken_s * GROWTH < MEASURE_S / options.iterations:
        size = min(num_bytes, size * GROWTH)
        taken_s = agreed(seconds(size, iterations=1))
    return size / seconds(size, iterations=calls_in_time(taken_s, wanted=options.iterations))


def calls_in_time(taken_s: float, *, wanted: int) -> int:
    """Return how many calls of this duration fit into MEASURE_S: at least one, at most `wanted`."""
    return max(1, min(wanted, int(MEASURE_S / max(taken_s, 1e-9))))


def node_rates(members: Sequence[tuple[str, int, float | None, list[float | None]]]) -> NodeRates:
    """Combine the rates of a node's ranks (bytes/s): a node is as fast as its slowest rank."""
    host, node = members[0][:2]
    inside = [found[2] for found in members if found[2] is not None]
    n = len(members)
    bus = min(inside) / 1e9 * 2 * (n - 1) / n if inside else None
    meetings = []
    for turn in range(len(members[0][3])):
        met = [speed for found in members if (speed := found[3][turn]) is not None]
        if met:
            meetings.append(len(met) * min(met) / 1e9)
    return NodeRates(host, node, bus, max(meetings, default=None))


def slow_nodes(rates: Sequence[NodeRates], cluster: Cluster, *, threshold: float) -> dict[int, list[str]]:
    """Map slow nodes to reasons: below `threshold` of the median node (with two nodes, of the faster).

    A node that is alone under its leaf may get only its share of an oversubscribed spine. If the cluster file has
    measured bandwidths, every node is also compared with those.
    """
    taper = cluster.oversubscription if 0 < cluster.nodes_per_leaf < cluster.num_nodes else 1.0
    measured = cluster.node.busbw_bytes_per_s
    inside = measured.get("nvlink" if cluster.node.domain_size == cluster.node.num_gpus else "pcie", 0.0) / 1e9
    between = measured.get("leaf", measured.get("spine", 0.0)) / 1e9
    slow: dict[int, list[str]] = {}
    for name, share, least in (("inside", threshold, inside), ("between", threshold / taper, between)):
        values = {found.node: getattr(found, f"{name}_gbytes_per_s") for found in rates}
        known = {node: value for node, value in values.items() if value is not None}
        usual = max(median_high(known.values()), least) if known else 0.0
        for node, value in known.items():
            if value < share * usual:
                slow.setdefault(node, []).append(f"{name} {value:.3g} of {usual:.3g} GB/s")
    return slow


def shown(rate: float | None) -> str:
    return "nothing to measure" if rate is None else f"{rate:.3g} GB/s"


if __name__ == "__main__":
    session.main(main)
