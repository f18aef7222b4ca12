"""Measure copy and triad in the memory of every rank's device, all ranks at once, and copies to and from the host.

Started by `launcher run recipe=memory` in every rank; no model is needed. Copy and triad as in STREAM (McCalpin 1995):
bytes that are read and written both count. Ranks that share a host's memory measure their share of it. The last line
on stdout is one JSON document. Has run on CPU ranks only.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from statistics import median
from typing import Any

import torch

from launcher import env
from launcher.planner.options import MemoryOptions
from launcher.run.rates import write_rates
from launcher.worker import session
from launcher.worker.metrics.measure import from_all_ranks, sustained, versions

BYTES = {"cuda": 2**30, "cpu": 2**26}
ELEMENT = 4  # fp32
Case = tuple[str, int, Callable[[], object]]


def main() -> None:
    with session.start() as run:
        options = run.recipe_options(MemoryOptions)
        num_bytes = options.num_bytes or BYTES[run.device.type]
        rows = []
        for name, moved, call in cases(num_bytes, run.device):
            found = sustained(call, device=run.device, seconds=options.seconds)
            rows.append(row(name, moved, from_all_ranks((socket.gethostname(), found.seconds))))
            run.say(row_line(rows[-1]))
        document = {
            "recipe": "memory",
            "date": datetime.now(UTC).date().isoformat(),
            "world_size": run.world_size,
            "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "cpu",
            "hosts": sorted(set(from_all_ranks(socket.gethostname()))),
            "versions": versions(run.device),
            "results": rows,
            "cluster": {"node": {"gpu": {"copy_gbytes_per_s": copy_key(run, rows[0])}}},
        }
        if run.is_main:
            write_rates(document, run.folder.result)


def cases(num_bytes: int, device: torch.device) -> Iterator[Case]:
    """Name, bytes that one call moves, the call."""
    count = num_bytes // ELEMENT
    a, b, c = (torch.ones(count, device=device) for _ in range(3))
    yield "copy", 2 * count * ELEMENT, lambda: a.copy_(b)
    yield "triad", 3 * count * ELEMENT, lambda: torch.add(b, c, alpha=3.0, out=a)
    if device.type == "cuda":
        host = torch.ones(count, pin_memory=True)
        yield "host to device", count * ELEMENT, lambda: a.copy_(host, non_blocking=True)
        yield "device to host", count * ELEMENT, lambda: host.copy_(a, non_blocking=True)


def row(name: str, moved: int, everyone: list[tuple[str, float]]) -> dict[str, Any]:
    """One line of the result: the median rank, the slowest one, and all ranks together."""
    times = [seconds for _, seconds in everyone]
    slowest = max(range(len(times)), key=times.__getitem__)
    return {
        "name": name,
        "bytes": moved,
        "time_s": median(times),
        "gbytes_per_s": moved / median(times) / 1e9,
        "total_gbytes_per_s": sum(moved / seconds for seconds in times) / 1e9,
        "slowest": {"rank": slowest, "host": everyone[slowest][0], "time_s": times[slowest]},
    }


def copy_key(run: session.Session, copied: dict[str, Any]) -> float:
    """Of a GPU; of a core where CPU ranks share some."""
    if run.device.type == "cuda":
        return round(copied["gbytes_per_s"], 4)
    cores = min(env.usable_cores(), run.world_size) * run.plan.placement.num_nodes
    return round(copied["total_gbytes_per_s"] / cores, 4)


def row_line(line: dict[str, Any]) -> str:
    return (
        f"{line['name']:>16}: {line['gbytes_per_s']:.2f} GB/s a rank (median), "
        f"{line['total_gbytes_per_s']:.2f} GB/s of all, the slowest rank {line['slowest']['rank']} on "
        f"{line['slowest']['host']}"
    )


if __name__ == "__main__":
    session.main(main)
