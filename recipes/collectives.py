"""Measure collectives over the groups of the plan's axes, as nccl-tests does: algbw, busbw, correctness.

Started by `launcher run recipe=collectives` in every rank. All groups of an axis run at once, as they do in training,
so that they share links and NICs. The table goes to stderr, the last line on stdout is one JSON document.

Definitions: https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md and src/*.cu there. `size` is the whole
buffer of an all-reduce, the gathered buffer of an all-gather, the buffer to scatter of a reduce-scatter, a rank's
send buffer of an all-to-all and of a send; algbw = size / time, busbw = algbw × a factor that makes it comparable to
the rate of a link. The time is the mean over the ranks of a group (nccl-tests' default, -a 1).

Has run with gloo only, up to 8 CPU ranks: the NCCL path is the same code, and no GPU has run it yet.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
import torch.distributed as dist

from launcher.errors import JobFailed
from launcher.planner import Plan
from launcher.planner.options import CollectivesOptions
from launcher.run.result import write_result
from launcher.units import format_bytes
from launcher.worker import session
from launcher.worker.metrics.measure import DTYPES, from_all_ranks, seconds_per_call, synchronize

MAX_BYTES = {"cuda": 2**30, "cpu": 2**22}
PERIOD = 8  # values repeat, small whole numbers, so that sums are exact in fp32 and, up to 36 ranks, in bf16
WIPED = -1  # no rank sends it
LARGEST_EXACT = {torch.float32: 2**24, torch.bfloat16: 2**8, torch.float16: 2**11}


@dataclass(frozen=True)
class Team:
    """The ranks that this rank communicates with: along an axis of the plan, or all of them."""

    name: str
    group: dist.ProcessGroup
    ranks: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def index(self) -> int:
        return dist.get_rank(self.group)


@dataclass(frozen=True)
class Collective:
    """One collective on buffers of its own: `call` runs it, `wrong` counts elements that are not as they should be.

    `fill` puts the inputs back and wipes what is to be received, so that an old result cannot pass for a new one;
    `num_bytes` is nccl-tests' size, `factor` its busbw / algbw.
    """

    call: Callable[[], object]
    fill: Callable[[], object]
    wrong: Callable[[], int]
    num_bytes: int
    factor: float


def main() -> None:
    with session.start() as run:
        options = run.recipe_options(CollectivesOptions)
        dtype = DTYPES[options.dtype]
        max_bytes = options.max_bytes or MAX_BYTES[run.device.type]
        if options.max_bytes is None:
            run.say(
                f"sizes up to {format_bytes(max_bytes)}, because the ranks run on {run.device.type}: recipe.max_bytes"
            )
        sizes = tuple(powers(options.min_bytes, max_bytes, options.factor))
        rows: list[dict[str, Any]] = []
        run.say(HEADING)
        for team in teams(run, world=options.world):
            for operation in options.operations:
                prepare = PREPARE[operation]
                measured = [
                    measure(prepare(team, size, dtype, run.device), team, run.device, options) for size in sizes
                ]
                everyone = from_all_ranks((socket.gethostname(), measured))
                found = [row(run, team, operation, everyone, i) for i in range(len(sizes))]
                rows += found
                for line in found:
                    run.say(table_line(line))
        document = {
            "recipe": "collectives",
            "backend": "nccl" if run.device.type == "cuda" else "gloo",
            "dtype": options.dtype,
            "world_size": run.world_size,
            "results": rows,
            "cluster": {"node": {"busbw_gbytes_per_s": cluster_keys(run.plan, rows)}},
        }
        failed = [line for line in rows if line["wrong"]]
        if run.is_main:
            short = {name: value for name, value in document.items() if name != "results"}
            write_result(document, run.folder.result, short=short)
        if failed:
            raise JobFailed(
                "; ".join(f"{r['operation']} over {r['axis']} at {r['bytes']} bytes is wrong" for r in failed)
            )


def powers(first: int, last: int, factor: int) -> Iterator[int]:
    """Sizes from the first power of two at or above `first`, in steps of `factor`, up to `last`."""
    size = 1 << (first - 1).bit_length()
    while size <= last:
        yield size
        size *= factor


def teams(run: session.Session, *, world: bool) -> list[Team]:
    """The plan's axes with more than one rank, fastest varying first, then all ranks where that is no axis already."""
    grid = run.plan.grid
    axes = [axis for axis in grid.axes if grid.degree(axis) > 1]
    found = [Team(axis, run.axes.group(axis), grid.group(axis, run.rank)) for axis in axes]
    everyone = dist.group.WORLD
    if world and len(axes) > 1 and everyone is not None:
        found.append(Team("world", everyone, tuple(range(run.world_size))))
    if not found:
        run.say("one rank: there is nothing to communicate")
    return found


def measure(
    collective: Collective, team: Team, device: torch.device, options: CollectivesOptions
) -> tuple[float, int, int, float]:
    """(seconds, elements that are wrong, size, busbw factor) of one collective on this rank."""
    collective.fill()
    synchronize(device)
    collective.call()
    synchronize(device)
    wrong = collective.wrong()
    dist.barrier(group=team.group)
    seconds = seconds_per_call(collective.call, device=device, warmup=options.warmup, iterations=options.iterations)
    return seconds, wrong, collective.num_bytes, collective.factor


# The collectives. Rank r's input holds values(count, r), so that what every rank must receive is known.


def values(count: int, shift: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return ((torch.arange(count, device=device) + shift) % PERIOD).to(dtype)


def sums(count: int, shift: int, ranks: int, device: torch.device) -> torch.Tensor:
    """What adding up values(count, shift + r) over r in 0 … ranks-1 gives, in fp64."""
    one = torch.arange(PERIOD, device=device)
    table = sum(((one + r) % PERIOD for r in range(ranks)), torch.zeros(PERIOD, device=device, dtype=torch.int64))
    return table.double()[(torch.arange(count, device=device) + shift) % PERIOD]


def differing(found: torch.Tensor, expected: torch.Tensor, *, largest: int) -> int:
    """Elements that differ; where sums reach past what the dtype counts exactly, by more than its rounding."""
    exact = LARGEST_EXACT[found.dtype]
    allowed = 0.0 if largest <= exact else 4.0 * largest / exact
    return int(((found.double() - expected.double()).abs() > allowed).sum())


def all_reduce(team: Team, size: int, dtype: torch.dtype, device: torch.device) -> Collective:
    count, n = max(1, size // dtype.itemsize), team.size
    buffer = torch.empty(count, dtype=dtype, device=device)
    return Collective(
        call=lambda: dist.all_reduce(buffer, group=team.group),
        fill=lambda: buffer.copy_(values(count, team.index, dtype, device)),
        wrong=lambda: differing(buffer, sums(count, 0, n, device), largest=n * PERIOD),
        num_bytes=count * dtype.itemsize,
        factor=2 * (n - 1) / n,
    )


def all_gather(team: Team, size: int, dtype: torch.dtype, device: torch.device) -> Collective:
    count, n = max(1, size // dtype.itemsize // team.size), team.size
    part = torch.empty(count, dtype=dtype, device=device)
    whole = torch.empty(count * n, dtype=dtype, device=device)
    expected = torch.cat([values(count, r, dtype, device) for r in range(n)])
    return Collective(
        call=lambda: dist.all_gather_single(whole, part, group=team.group),
        fill=lambda: (part.copy_(values(count, team.index, dtype, device)), whole.fill_(WIPED)),
        wrong=lambda: differing(whole, expected, largest=PERIOD),
        num_bytes=count * n * dtype.itemsize,
        factor=(n - 1) / n,
    )


def reduce_scatter(team: Team, size: int, dtype: torch.dtype, device: torch.device) -> Collective:
    count, n = max(1, size // dtype.itemsize // team.size), team.size
    part = torch.empty(count, dtype=dtype, device=device)
    whole = torch.empty(count * n, dtype=dtype, device=device)
    return Collective(
        call=lambda: dist.reduce_scatter_single(part, whole, group=team.group),
        fill=lambda: (whole.copy_(values(count * n, team.index, dtype, device)), part.fill_(WIPED)),
        wrong=lambda: differing(part, sums(count, team.index * count, n, device), largest=n * PERIOD),
        num_bytes=count * n * dtype.itemsize,
        factor=(n - 1) / n,
    )


def all_to_all(team: Team, size: int, dtype: torch.dtype, device: torch.device) -> Collective:
    count, n = max(1, size // dtype.itemsize // team.size), team.size
    given = torch.empty(count * n, dtype=dtype, device=device)
    taken = torch.empty(count * n, dtype=dtype, device=device)

    def sent(source: int, target: int) -> torch.Tensor:
        return values(count, 3 * source + target, dtype, device)

    return Collective(
        call=lambda: dist.all_to_all_single(taken, given, group=team.group),
        fill=lambda: (given.copy_(torch.cat([sent(team.index, r) for r in range(n)])), taken.fill_(WIPED)),
        wrong=lambda: differing(taken, torch.cat([sent(r, team.index) for r in range(n)]), largest=PERIOD),
        num_bytes=count * n * dtype.itemsize,
        factor=(n - 1) / n,
    )


def send_recv(team: Team, size: int, dtype: torch.dtype, device: torch.device) -> Collective:
    """Every rank sends to the next one of its group and receives from the one before, all at once."""
    count, n = max(1, size // dtype.itemsize), team.size
    given = torch.empty(count, dtype=dtype, device=device)
    taken = torch.empty(count, dtype=dtype, device=device)
    following, previous = team.ranks[(team.index + 1) % n], team.ranks[(team.index - 1) % n]

    def call() -> None:
        exchange = [
            dist.P2POp(dist.isend, given, following, team.group),
            dist.P2POp(dist.irecv, taken, previous, team.group),
        ]
        for work in dist.batch_isend_irecv(exchange):
            work.wait()

    return Collective(
        call=call,
        fill=lambda: (given.copy_(values(count, team.index, dtype, device)), taken.fill_(WIPED)),
        wrong=lambda: differing(taken, values(count, (team.index - 1) % n, dtype, device), largest=PERIOD),
        num_bytes=count * dtype.itemsize,
        factor=1.0,
    )


PREPARE = {
    "all_reduce": all_reduce,
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
    "all_to_all": all_to_all,
    "send_recv": send_recv,
}


# What all ranks measured, put together.


def row(run: session.Session, team: Team, operation: str, everyone: Sequence[Any], size: int) -> dict[str, Any]:
    """One line of the result: the mean over the groups of an axis, and the slowest group with its hosts."""
    plan = run.plan
    groups = [team.ranks] if team.name == "world" else list(plan.grid.groups(team.name))
    cells = [measured[size] for _, measured in everyone]
    seconds = [mean(cells[rank][0] for rank in group) for group in groups]
    num_bytes, factor = cells[0][2], cells[0][3]
    slowest = max(range(len(groups)), key=lambda i: seconds[i])
    time_s = mean(seconds)
    return {
        "operation": operation,
        "axis": team.name,
        "link": max(plan.placement.slowest_link(group) for group in groups).name.lower(),
        "group_size": team.size,
        "num_groups": len(groups),
        "bytes": num_bytes,
        "time_s": time_s,
        "algbw_gbytes_per_s": num_bytes / time_s / 1e9,
        "busbw_gbytes_per_s": num_bytes / time_s / 1e9 * factor,
        "slowest": {
            "ranks": list(groups[slowest]),
            "hosts": sorted({everyone[rank][0] for rank in groups[slowest]}),
            "time_s": seconds[slowest],
        },
        "wrong": sum(cell[1] for cell in cells),
    }


def cluster_keys(plan: Plan, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`cluster.node.busbw_gbytes_per_s` for the cluster file: the largest size, by the slowest link of a group.

    Inside a node that of all-reduces; between nodes that of all-gathers, since an all-reduce over two nodes is a tree,
    whose busbw exceeds the NICs' rate (NVIDIA/nccl#1576). There a group has the share of its node's NICs that its ranks
    make of the node's GPUs: scaled up to the whole node. The best group where several cross the same kind of link.
    """
    found: dict[str, float] = {}
    largest = max((line["bytes"] for line in rows), default=0)
    for line in rows:
        across = line["link"] in ("leaf", "spine")
        if line["bytes"] < largest or line["operation"] != ("all_gather" if across else "all_reduce"):
            continue
        scale = 1.0
        if across:
            nodes = Counter(plan.placement.slot(rank).node for rank in line["slowest"]["ranks"])
            scale = plan.job.cluster.node.num_gpus / max(nodes.values())
        rate = round(line["busbw_gbytes_per_s"] * scale, 4)
        found[line["link"]] = max(rate, found.get(line["link"], 0.0))
    return found


HEADING = "  axis groups     link       operation       size         time     algbw     busbw   wrong    (GB/s)"


def table_line(line: dict[str, Any]) -> str:
    groups = f"{line['num_groups']}×{line['group_size']}"
    return (
        f"{line['axis']:>6} {groups:>6} {line['link']:>8} {line['operation']:>15} {format_bytes(line['bytes']):>10} "
        f"{line['time_s'] * 1e6:>9.1f} µs {line['algbw_gbytes_per_s']:>9.3f} {line['busbw_gbytes_per_s']:>9.3f} "
        f"{line['wrong']:>7}"
    )


if __name__ == "__main__":
    session.main(main)
