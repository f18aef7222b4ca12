"""Time from the command to the first all-reduce, by phase, over all ranks.

Started by `launcher run recipe=coldstart` in every rank; the last line on stdout is one JSON document. Process starts
are read from /proc, to its clock tick of 10 ms. Has run on CPU ranks only.
"""

from __future__ import annotations

import time

BEGUN_S = time.clock_gettime(time.CLOCK_BOOTTIME)  # this file's first line, before its imports

import os  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from launcher.run.result import write_result  # noqa: E402
from launcher.units import format_seconds  # noqa: E402
from launcher.worker import session  # noqa: E402
from launcher.worker.metrics.measure import from_all_ranks, synchronize  # noqa: E402

PHASES = (
    ("start", "from the command to this rank's process: plan, run folder, imports, fork"),
    ("enter", "from the process to the recipe's first line"),
    ("imports", "the recipe's own imports"),
    ("groups", "plan read, rendezvous, process groups, mesh"),
    ("first_all_reduce", "the first all-reduce of all ranks: connections, buffers"),
    ("second_all_reduce", "the same again, warm"),
)


def main() -> None:
    imported_s = now()
    with session.start() as run:
        joined_s = now()
        tensor = torch.ones(1, device=run.device)
        first_s = all_reduced(tensor)
        second_s = all_reduced(tensor)
        moments = (
            command_start(os.getpid()),
            process_start(os.getpid()),
            BEGUN_S,
            imported_s,
            joined_s,
            first_s,
            second_s,
        )
        everyone = from_all_ranks(moments)
        slowest = [max(last[i + 1] - last[i] for last in everyone) for i in range(len(PHASES))]
        total_s = max(last[5] for last in everyone) - min(last[0] for last in everyone)
        for (name, meaning), seconds in zip(PHASES, slowest, strict=True):
            run.say(f"{name:>18} {format_seconds(seconds):>10}  {meaning}")
        run.say(f"{'total':>18} {format_seconds(total_s):>10}  from the command to the last rank's first all-reduce")
        document = {
            "recipe": "coldstart",
            "world_size": run.world_size,
            "phases_s": {name: seconds for (name, _), seconds in zip(PHASES, slowest, strict=True)},
            "total_s": total_s,
        }
        if run.is_main:
            write_result(document, run.folder.result, short=document)


def all_reduced(tensor: torch.Tensor) -> float:
    """Run an all-reduce over all ranks and return its end time."""
    dist.all_reduce(tensor)
    synchronize(tensor.device)
    return now()


def now() -> float:
    """Return the seconds since boot, the clock of /proc."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def process_start(pid: int) -> float:
    """Return the start time of a process in seconds since boot (proc(5), /proc/pid/stat, field 22)."""
    return int(stat_fields(pid)[19]) / os.sysconf("SC_CLK_TCK")


def command_start(pid: int) -> float:
    """Return the start time of the oldest launcher ancestor of `pid`: the command, or the node's agent under Slurm."""
    oldest, parent = pid, int(stat_fields(pid)[1])
    while parent > 1 and is_launcher(parent):
        oldest, parent = parent, int(stat_fields(parent)[1])
    return process_start(oldest)


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/pid/stat from the third on, after the name in parentheses."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def is_launcher(pid: int) -> bool:
    """Return whether a process is Python running the launcher."""
    words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")[:3]
    return any(Path(word).name == "launcher" or word.startswith("launcher.") for word in words)


if __name__ == "__main__":
    session.main(main)
