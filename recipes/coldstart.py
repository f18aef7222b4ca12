"""Time from the command to the first all-reduce, by phase, over all ranks.

Started by `launcher run recipe=coldstart` in every rank; the last line on stdout is one JSON document, with the totals
of the last runs next to this one. It fails past launch.cold_start_budget_s. Process starts are read from /proc, to its
clock tick of 10 ms. Has run on CPU ranks only.
"""

from __future__ import annotations

import time

BEGUN_S = time.clock_gettime(time.CLOCK_BOOTTIME)  # this file's first line, before its imports

import os  # noqa: E402
from pathlib import Path  # noqa: E402
from statistics import median  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from launcher.errors import InputError, JobFailed  # noqa: E402
from launcher.files import read_json  # noqa: E402
from launcher.run.folder import RunFolder  # noqa: E402
from launcher.run.result import write_result  # noqa: E402
from launcher.units import format_seconds  # noqa: E402
from launcher.worker import session  # noqa: E402
from launcher.worker.metrics.measure import from_all_ranks, synchronize  # noqa: E402

MOST_RUNS = 5
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
            "last_total_s": last_totals(run.folder, run.world_size),
            "budget_s": budget_of(run.folder),
        }
        run.say(against(document))
        if run.is_main:
            write_result(document, run.folder.result, short=document)
        if document["budget_s"] is not None and total_s > document["budget_s"]:
            raise JobFailed(
                f"the cold start took {format_seconds(total_s)}, and launch.cold_start_budget_s is "
                f"{format_seconds(document['budget_s'])}: look at its longest phase, or allow more"
            )


def last_totals(folder: RunFolder, world_size: int) -> list[float]:
    """Return the totals of the last cold starts of as many ranks, of the runs next to this one, newest first."""
    found = []
    for file in folder.path.parent.glob(f"*/{folder.result.relative_to(folder.path)}"):
        try:
            data = read_json(file, remedy="")
            if (data["recipe"], data["world_size"]) == ("coldstart", world_size) and file != folder.result:
                found.append((file.stat().st_mtime, float(data["total_s"])))
        except (InputError, OSError, KeyError, TypeError, ValueError):
            continue  # of another recipe, or being written
    return [total_s for _, total_s in sorted(found, reverse=True)[:MOST_RUNS]]


def budget_of(folder: RunFolder) -> float | None:
    """Return launch.cold_start_budget_s; a run without launch.json has none."""
    if not folder.launch.is_file():
        return None
    budget = read_json(folder.launch, remedy="start the run again")["settings"].get("cold_start_budget_s")
    return None if budget is None else float(budget)


def against(document: dict[str, Any]) -> str:
    """Say how this start compares with the last ones, and with the budget."""
    last, total_s, budget_s = document["last_total_s"], document["total_s"], document["budget_s"]
    said = "no earlier cold start of as many ranks is next to this run"
    if last:
        change = total_s / median(last) - 1
        said = f"{abs(change):.0%} {'more' if change > 0 else 'less'} than the median of the last {len(last)} runs "
        said += f"({format_seconds(min(last))} to {format_seconds(max(last))})"
    return said + (f"; the budget is {format_seconds(budget_s)}" if budget_s is not None else "")


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
