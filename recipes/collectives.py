"""Measure collectives over the groups of the plan's axes, as nccl-tests does, and say which rank or link is slow.

Started by `launcher run recipe=collectives` in every rank, of any cluster: no model is needed. All groups of an axis
run at once, as they do in training, so that they share links and NICs; then the first one alone: the ratio is the
contention. Rails are measured one at a time, and leaves in pairs. Tables go to stderr with nccl-tests' columns and
closing lines, then the median and the 99th percentile, the time alone, and the time that the planner expects. The time
is the mean over the ranks of a group (nccl-tests' default, -a 1). The last line on stdout is one JSON document.

It has run only with gloo, up to 8 CPU ranks: the NCCL path is the same code, but has not run on a GPU yet.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import mean
from typing import Any

import torch
import torch.distributed as dist

from launcher.cost.network import Fabric
from launcher.errors import JobFailed
from launcher.planner import Plan
from launcher.planner.expected import expected_s, plan_fabric
from launcher.planner.options import CollectivesOptions, message_sizes
from launcher.run.rates import write_rates
from launcher.worker import session
from launcher.worker.metrics.fabric_groups import LEAF_PAIR, RAIL, leaf_pair_rounds, rail_groups, slow_parts
from launcher.worker.metrics.measure import DTYPES, Timing, from_all_ranks, synchronize, timed_calls, versions
from launcher.worker.metrics.nccl_tests import IN_PLACE, OUT_OF_PLACE, AxisGroup, Collective, Make, busbw_factor
from launcher.worker.metrics.verdict import GroupTime, verdict

SIZES = {"cuda": "8:1G:8", "cpu": "8:4M:8"}
FORMS: Mapping[str, Mapping[str, Make]] = {"out_of_place": OUT_OF_PLACE, "in_place": IN_PLACE}
MOST_CALLS = 1000
NCCL_TYPES = {"fp32": "float", "bf16": "bfloat16", "fp16": "half"}


@dataclass(frozen=True)
class Cell:
    """What one rank measured of one size: the timing and wrong elements of each form, and of the group alone."""

    forms: Mapping[str, tuple[Timing, int]]
    alone: Timing | None
    num_bytes: int
    count: int


def main() -> None:
    with session.start() as run:
        options = run.recipe_options(CollectivesOptions)
        sizes = options.sizes or message_sizes(SIZES[run.device.type])
        if options.sizes is None:
            run.say(f"sizes {SIZES[run.device.type]}, because the ranks run on {run.device.type}: recipe.sizes")
        fabric, rows = plan_fabric(run.plan), []
        for team in teams(run, options):
            for operation in options.operations:
                cells = [measure(operation, team, size, run, options) for size in sizes]
                everyone = from_all_ranks((socket.gethostname(), cells))
                found = [row(run.plan, fabric, team, operation, everyone, i, options) for i in range(len(sizes))]
                rows += found
                for line in table(found):
                    run.say(line)
        document = document_of(run, options, rows)
        if run.is_main:
            write_rates(document, run.folder.result)
        run.say(document["verdict"]["text"])
        if failed := [line for line in rows if line["wrong"]]:
            raise JobFailed(
                "; ".join(f"{r['operation']} over {r['axis']} at {r['bytes']} bytes is wrong" for r in failed)
            )


def teams(run: session.Session, options: CollectivesOptions) -> list[AxisGroup]:
    """Return the plan's axes with more than one rank, fastest varying first, then all ranks unless an axis has them,
    and the parts of the fabric.
    """
    grid = run.plan.grid
    axes = [axis for axis in grid.axes if grid.degree(axis) > 1]
    found = [
        AxisGroup(axis, run.axes.group(axis), grid.group(axis, run.rank), tuple(grid.groups(axis))) for axis in axes
    ]
    everyone, ranks = dist.group.WORLD, tuple(range(run.world_size))
    if options.world and len(axes) > 1 and everyone is not None:
        found.append(AxisGroup("world", everyone, ranks, (ranks,)))
    if not found:
        run.say("one rank: there is nothing to communicate")
    return [*found, *fabric_teams(run)] if options.fabric else found


def fabric_teams(run: session.Session) -> Iterator[AxisGroup]:
    """The rails, one at a time, and rounds of pairs of leaves. Every rank makes every group."""
    placement, world = run.plan.placement, run.world_size
    rails = rail_groups(placement, world)
    rounds = [(RAIL, rails)] if rails else []
    for name, groups in [*rounds, *((LEAF_PAIR, pairs) for pairs in leaf_pair_rounds(placement, world))]:
        made = [dist.new_group(ranks) for ranks in groups]
        own = next((i for i, ranks in enumerate(groups) if run.rank in ranks), None)
        mine = (None, ()) if own is None else (made[own], groups[own])
        yield AxisGroup(name, *mine, groups, in_turn=name == RAIL)


def measure(
    operation: str, team: AxisGroup, size: int, run: session.Session, options: CollectivesOptions
) -> Cell | None:
    """One collective at one size, in every form that it has, then with the first group alone; None where this rank has
    no part in it.
    """
    found = None
    for groups in team.turns:
        found = forms_of(operation, team if team.ranks in groups else None, size, run, options) or found
    if options.alone and team.name not in (RAIL, LEAF_PAIR) and team.size < run.world_size and found is not None:
        found = replace(found, alone=alone(operation, team, size, run, options))
    return found


def alone(
    operation: str, team: AxisGroup, size: int, run: session.Session, options: CollectivesOptions
) -> Timing | None:
    """The first group of an axis while the others wait; None where this rank does."""
    found = None
    if 0 in team.ranks:
        make = next(makes[operation] for makes in FORMS.values() if operation in makes)
        found = timed_calls(
            make(team, size, DTYPES[options.dtype], run.device).call, device=run.device, iterations=options.iterations
        )
    dist.barrier()
    return found


def forms_of(
    operation: str, team: AxisGroup | None, size: int, run: session.Session, options: CollectivesOptions
) -> Cell | None:
    """Every form of a collective on all groups whose turn it is; without one this rank waits as often as they do."""
    forms: dict[str, tuple[Timing, int]] = {}
    num_bytes = count = 0
    for form, makes in FORMS.items():
        if operation not in makes:
            continue
        made = makes[operation](team, size, DTYPES[options.dtype], run.device) if team else None
        wrong = checked(made, run.device) if made else 0
        timing = timed(made, run.device, options)
        if made and timing:
            forms[form], num_bytes, count = (timing, wrong), made.num_bytes, made.count
    return Cell(forms, None, num_bytes, count) if forms else None


def checked(made: Collective, device: torch.device) -> int:
    """Elements that one call leaves wrong."""
    made.fill()
    synchronize(device)
    made.call()
    synchronize(device)
    return made.wrong()


def timed(made: Collective | None, device: torch.device, options: CollectivesOptions) -> Timing | None:
    """As many calls on every rank; all ranks begin together, and those without a call wait."""
    for _ in range(options.warmup if made else 0):
        made.call()
    dist.barrier()
    taken = timed_calls(made.call, device=device, iterations=1).mean_s if made else 0.0
    once = torch.tensor(taken, device=device)
    dist.all_reduce(once, dist.ReduceOp.MAX)
    wanted = min(MOST_CALLS, int(options.seconds / max(float(once), 1e-9)))
    dist.barrier()
    return timed_calls(made.call, device=device, iterations=max(options.iterations, wanted)) if made else None


# Combining the measurements of all ranks.


def row(
    plan: Plan,
    fabric: Fabric,
    team: AxisGroup,
    operation: str,
    everyone: Sequence[tuple[str, Sequence[Cell | None]]],
    size: int,
    options: CollectivesOptions,
) -> dict[str, Any]:
    """One line of the result: the mean over the groups of an axis, and the slowest group with its hosts.

    The keys of nccl-tests' JSON, and ours; where a collective has both forms, ours are of the one out of place.
    """
    groups = team.groups
    cells = {rank: cell for rank, (_, measured) in enumerate(everyone) if (cell := measured[size]) is not None}
    first, factor = cells[groups[0][0]], busbw_factor(operation, team.size)
    form = next(iter(first.forms))
    usual = [mean(cells[rank].forms[form][0].p50_s for rank in group) for group in groups]
    seconds = [mean(cells[rank].forms[form][0].mean_s for rank in group) for group in groups]
    slowest = max(range(len(groups)), key=lambda i: seconds[i])
    time_s, num_bytes = mean(seconds), first.num_bytes
    alone = [cells[rank].alone for rank in groups[0]]
    alone_s, alone_cpu_s = (
        mean(getattr(one, name) for one in alone if one) if any(alone) else None for name in ("mean_s", "cpu_s")
    )
    expected = max(expected_s(plan, fabric, operation, group, num_bytes) for group in groups)
    return {
        "size": num_bytes,
        "count": first.count,
        "type": NCCL_TYPES[options.dtype],
        "redop": "sum" if "reduce" in operation else "none",
        "root": "-1",
        **{name: nccl_cell(list(cells.values()), name, num_bytes, factor) for name in FORMS},
        "operation": operation,
        "axis": team.name,
        "link": max(plan.placement.slowest_link(group) for group in groups).name.lower(),
        "group_size": team.size,
        "per_node": max(Counter(plan.placement.slot(rank).node for rank in groups[0]).values()),
        "num_groups": 1 if team.in_turn else len(groups),
        "bytes": num_bytes,
        "iterations": first.forms[form][0].iterations,
        "time_s": time_s,
        "p50_s": mean(cell.forms[form][0].p50_s for cell in cells.values()),
        "p99_s": max(cell.forms[form][0].p99_s for cell in cells.values()),
        "cpu_s": mean(cell.forms[form][0].cpu_s for cell in cells.values()),
        "algbw_gbytes_per_s": num_bytes / time_s / 1e9,
        "busbw_gbytes_per_s": num_bytes / time_s / 1e9 * factor,
        "alone_s": alone_s,
        "alone_cpu_s": alone_cpu_s,
        "contention": seconds[0] / alone_s if alone_s else None,
        "expected_s": expected,
        "groups": [{"ranks": list(group), "p50_s": taken} for group, taken in zip(groups, usual, strict=True)],
        "slowest": {
            "ranks": list(groups[slowest]),
            "hosts": sorted({everyone[rank][0] for rank in groups[slowest]}),
            "time_s": seconds[slowest],
        },
        "wrong": sum(wrong for cell in cells.values() for _, wrong in cell.forms.values()),
    }


def nccl_cell(cells: Sequence[Cell], form: str, num_bytes: int, factor: float) -> dict[str, float] | None:
    """As nccl-tests writes it into its JSON: microseconds and GB/s."""
    if form not in cells[0].forms:
        return None
    seconds = mean(cell.forms[form][0].mean_s for cell in cells)
    rate = num_bytes / seconds / 1e9
    wrong = sum(cell.forms[form][1] for cell in cells)
    return {"time": seconds * 1e6, "alg_bw": rate, "bus_bw": rate * factor, "nwrong": float(wrong)}


def document_of(run: session.Session, options: CollectivesOptions, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result, with nccl-tests' names for what it has too."""
    hosts = dict(enumerate(from_all_ranks(socket.gethostname())))
    times = [
        GroupTime(line["axis"], f"{line['operation']} {line['bytes']}", tuple(group["ranks"]), group["p50_s"])
        for line in rows
        for group in line["groups"]
    ]
    said = verdict(times, hosts, threshold=options.threshold)
    part = slow_parts(run.plan.placement, said.slow_groups)
    slow = [{"axis": axis, "ranks": list(ranks)} for axis, ranks in said.slow_groups]
    return {
        "recipe": "collectives",
        "date": datetime.now(UTC).date().isoformat(),
        "backend": "nccl" if run.device.type == "cuda" else "gloo",
        "dtype": options.dtype,
        "world_size": run.world_size,
        "hosts": sorted(set(hosts.values())),
        "versions": versions(run.device),
        "results": rows,
        **closing(rows),
        "verdict": {
            "slow_groups": slow,
            "ranks": list(said.ranks),
            "hosts": list(said.hosts),
            "text": f"{said.text}; {part}" if part else said.text,
        },
        "cluster": {"node": {"busbw_gbytes_per_s": cluster_keys(run.plan, rows)}},
    }


def closing(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What nccl-tests closes with."""
    wrong = int(sum(line["wrong"] for line in rows))
    rates = [line[form]["bus_bw"] for line in rows for form in FORMS if line[form]]
    return {
        "out_of_bounds": {"count": wrong, "okay": "false" if wrong else "true"},
        "average_bus_bandwidth": {"bandwidth": mean(rates) if rates else 0.0, "okay": "unchecked"},
    }


def cluster_keys(plan: Plan, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`cluster.node.busbw_gbytes_per_s` for the cluster file: the largest size, by the slowest link of a group.

    Inside a node by all-reduces; between nodes by all-gathers, since an all-reduce over two nodes is a tree with a
    busbw above the NICs' rate (NVIDIA/nccl#1576). There a group's share of the node's NICs is its share of the node's
    GPUs: the rate is scaled to the whole node. If several groups cross the same kind of link, the best counts.
    """
    found: dict[str, float] = {}
    largest = max((line["bytes"] for line in rows), default=0)
    for line in rows:
        across = line["link"] in ("leaf", "spine")
        if (
            line.get("axis") == RAIL
            or line["bytes"] < largest
            or line["operation"] != ("all_gather" if across else "all_reduce")
        ):
            continue
        scale = 1.0
        if across:
            nodes = Counter(plan.placement.slot(rank).node for rank in line["slowest"]["ranks"])
            scale = plan.job.cluster.node.num_gpus / max(nodes.values())
        rate = round(line["busbw_gbytes_per_s"] * scale, 4)
        found[line["link"]] = max(rate, found.get(line["link"], 0.0))
    return found


HEADING = (
    f"# {'':>10}  {'':>12}  {'':>8}  {'':>6}  {'':>6}           out-of-place                       in-place          ",
    f"# {'size':>10}  {'count':>12}  {'type':>8}  {'redop':>6}  {'root':>6}"
    + f"  {'time':>7}  {'algbw':>6}  {'busbw':>6}  {'#wrong':>6}" * 2
    + f"  {'p50':>7}  {'p99':>7}  {'alone':>7}  {'expect':>7}",
    f"# {'(B)':>10}  {'(elements)':>12}  {'':>8}  {'':>6}  {'':>6}"
    + f"  {'(us)':>7}  {'(GB/s)':>6}  {'(GB/s)':>6}  {'':>6}" * 2
    + f"  {'(us)':>7}" * 4,
)


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The lines of one collective over one axis, as nccl-tests prints them."""
    line = rows[0]
    groups = f"{line['num_groups']} group{'s' if line['num_groups'] > 1 else ''} of {line['group_size']}"
    yield f"# Collective test starting: {line['operation']}_perf"
    yield f"# over {line['axis']}: {groups} at once, slowest link {line['link']}, {line['iterations']} calls or more"
    yield from HEADING
    for line in rows:
        forms = "".join(_form(line[form]) for form in FORMS)
        numbers = (line["p50_s"], line["p99_s"], line["alone_s"], line["expected_s"])
        more = "".join(f"  {'N/A' if s is None else _digits(s * 1e6, 7):>7}" for s in numbers)
        yield (
            f"{line['size']:>12}  {line['count']:>12}  {line['type']:>8}  {line['redop']:>6}  {line['root']:>6}"
            f"{forms}{more}"
        )
    said = closing(rows)
    wrong, rate = said["out_of_bounds"]["count"], said["average_bus_bandwidth"]["bandwidth"]
    yield f"# {'Out of bounds values':<20} : {wrong} {'FAILED' if wrong else 'OK'}"
    yield f"# {'Avg bus bandwidth':<20} : {rate:g} "
    yield "#"


def _form(cell: Mapping[str, float] | None) -> str:
    if cell is None:
        return f"  {'N/A':>7}  {'N/A':>6}  {'N/A':>6}  {'N/A':>6}"
    numbers = ((cell["time"], 7), (cell["alg_bw"], 6), (cell["bus_bw"], 6))
    return "".join(f"  {_digits(value, width)}" for value, width in numbers) + f"  {cell['nwrong']:>6g}"


def _digits(value: float, width: int) -> str:
    """As many decimals as the column has room for (src/util.cu, getFloatStr)."""
    texts = (f"{value:{width}.{decimals}f}" for decimals in (2, 1, 0))
    return next((text for text in texts if len(text) <= width), f"{value:{width}.1e}")


if __name__ == "__main__":
    session.main(main)
