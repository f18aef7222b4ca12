"""Measure how fast ranks write and read files in the run folder, by number of writers, as checkpoints do.

Started by `launcher run recipe=storage run_dir=FOLDER` in every rank, FOLDER on the file system in question; no model
is needed. Each writer writes a file of its own and waits until it is on the disk (fsync); readers then read what their
neighbour wrote, after the page cache was asked to drop it: a cache of the file system's servers stays. The last line
on stdout is one JSON document. Has run on one machine only.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from launcher.planner.options import StorageOptions
from launcher.run.rates import write_rates
from launcher.units import format_bytes
from launcher.worker import session
from launcher.worker.metrics.measure import barrier, from_all_ranks, versions

CHUNK_BYTES = 1 << 22


def main() -> None:
    with session.start() as run:
        options = run.recipe_options(StorageOptions)
        folder = run.run_dir / "storage"
        folder.mkdir(exist_ok=True)
        rows = []
        try:
            for writers in counts(run.world_size):
                for operation, work in (("write", write_file), ("read", read_file)):
                    rows.append(measured(run, operation, work, folder, writers, options))
                    run.say(row_line(rows[-1]))
        finally:
            barrier()
            own_file(folder, run.rank).unlink(missing_ok=True)
        barrier()
        if run.is_main:
            folder.rmdir()
        document = document_of(run, rows)
        if run.is_main:
            write_rates(document, run.folder.result)


def counts(world_size: int) -> list[int]:
    """1, 2, 4 … writers, and all."""
    return sorted({min(1 << i, world_size) for i in range(world_size.bit_length() + 1)})


def own_file(folder: Path, rank: int) -> Path:
    return folder / f"{rank:05d}.bin"


def measured(
    run: session.Session,
    operation: str,
    work: Callable[[Path, int], None],
    folder: Path,
    writers: int,
    options: StorageOptions,
) -> dict[str, Any]:
    """The first `writers` ranks at once, several times: from the first's start to the last's end."""
    taken = []
    shift = 0 if operation == "write" else 1  # a neighbour's file: the reader's own may be in its memory
    for _ in range(options.rounds):
        barrier()
        begin = time.perf_counter()
        if run.rank < writers:
            work(own_file(folder, (run.rank + shift) % writers), options.num_bytes)
        taken.append((socket.gethostname(), time.perf_counter() - begin if run.rank < writers else 0.0))
    everyone = from_all_ranks(taken)
    rounds = [max(one[i][1] for one in everyone) for i in range(options.rounds)]
    slowest = max(range(writers), key=lambda rank: median(seconds for _, seconds in everyone[rank]))
    return {
        "name": operation,
        "writers": writers,
        "bytes": writers * options.num_bytes,
        "time_s": median(rounds),
        "gbytes_per_s": writers * options.num_bytes / median(rounds) / 1e9,
        "spread": (max(rounds) - min(rounds)) / median(rounds),
        "slowest": {"rank": slowest, "host": everyone[slowest][0][0]},
    }


def write_file(file: Path, num_bytes: int) -> None:
    """As a checkpoint's file: written in pieces, on the disk when this returns."""
    piece = os.urandom(min(CHUNK_BYTES, num_bytes))  # zeros are not stored by some file systems
    with file.open("wb") as out:
        left = num_bytes
        while left:
            left -= out.write(piece[:left])
        out.flush()
        os.fsync(out.fileno())
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_file(file: Path, num_bytes: int) -> None:
    buffer = bytearray(min(CHUNK_BYTES, num_bytes))
    with file.open("rb", buffering=0) as found:
        os.posix_fadvise(found.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while found.readinto(buffer):
            pass


def document_of(run: session.Session, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rates = {
        f"checkpoint_{name}_gbytes_per_s": {
            f"n{row['writers']}": round(row["gbytes_per_s"], 4) for row in rows if row["name"] == name
        }
        for name in ("write", "read")
    }
    return {
        "recipe": "storage",
        "date": datetime.now(UTC).date().isoformat(),
        "world_size": run.world_size,
        "folder": str(run.run_dir),
        "hosts": sorted(set(from_all_ranks(socket.gethostname()))),
        "versions": versions(torch.device("cpu")),
        "results": rows,
        "cluster": {"measured": rates},
    }


def row_line(line: dict[str, Any]) -> str:
    return (
        f"{line['name']:>5} by {line['writers']:>4}: {line['gbytes_per_s']:.3f} GB/s "
        f"({format_bytes(line['bytes'])} in {line['time_s']:.3f} s, ± {line['spread'] / 2:.0%}), rank "
        f"{line['slowest']['rank']} on {line['slowest']['host']} the slowest"
    )


if __name__ == "__main__":
    session.main(main)
