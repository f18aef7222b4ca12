"""A sweep: one job array, one folder for each run in it (0, 1, …), one table of results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import InputError
from launcher.planner import Plan
from launcher.run.folder import read_lines, write_json, write_text
from launcher.slurm.request import SubmitRequest, Where, cpus_per_task, gpus_per_node, submit_request
from launcher.slurm.settings import SlurmSettings

SWEEP_FILE = "sweep.json"
TABLE_FILE = "results.txt"
RESULTS_FILE = "results.json"
COLUMNS = ("run", "state", "layout", "steps", "loss", "step_s", "overrides")


@dataclass(frozen=True)
class SweepMember:
    """One run of a sweep: what is particular about it, and its plan."""

    overrides: tuple[str, ...]
    plan: Plan


def sweep_request(
    members: Sequence[SweepMember], settings: SlurmSettings, where: Where, *, without: Sequence[str] = ()
) -> SubmitRequest:
    """The sbatch command of a whole sweep; raises InputError where its runs need different resources."""
    needs = [_needs(member.plan, settings) for member in members]
    odd = [i for i, need in enumerate(needs) if need != needs[0]]
    if odd:
        raise InputError(
            f"the runs of one sweep are one job array and must ask for the same nodes: run 0 wants {needs[0]}, "
            f"run {odd[0]} ({' '.join(members[odd[0]].overrides)}) wants {needs[odd[0]]}; submit them apart"
        )
    return submit_request(members[0].plan, settings, where, without=without, array_size=len(members))


def write_sweep(folder: Path, members: Sequence[SweepMember]) -> None:
    """Note which overrides made which run, for the table."""
    write_json(folder / SWEEP_FILE, {"runs": [list(member.overrides) for member in members]})


def results(folder: Path, *, ended: bool = False) -> list[dict[str, Any]]:
    """One row for each run of a sweep, from its folder; empty where the folder is no sweep.

    `ended`: Slurm says that the whole array has, so that a run without an end of its own was cancelled or killed.
    """
    try:
        runs = json.loads((folder / SWEEP_FILE).read_text())["runs"]
    except FileNotFoundError:
        return []
    rows = [{"run": i, "overrides": " ".join(words), **_row(folder / str(i))} for i, words in enumerate(runs)]
    cut_off = {"waiting": "never started", "running": "ended by Slurm"} if ended else {}
    return [row | {"state": cut_off.get(row["state"], row["state"])} for row in rows]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text."""
    cells = [COLUMNS, *([_cell(row[name]) for name in COLUMNS] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join(lines)


def update_table(run_folder: Path) -> None:
    """Called as a run of a sweep ends: write the table anew beside the runs. The last one to end makes it complete."""
    folder = run_folder.parent
    rows = results(folder)
    if rows:
        write_json(folder / RESULTS_FILE, {"runs": rows})
        write_text(folder / TABLE_FILE, table(rows) + "\n")


def _needs(plan: Plan, settings: SlurmSettings) -> str:
    nodes, gpus, cpus = plan.placement.num_nodes, gpus_per_node(plan, settings), cpus_per_task(plan, settings)
    return f"{nodes} nodes × {gpus} GPUs, {cpus} cores each"


def _row(run: Path) -> dict[str, Any]:
    """Where one run stands. `state`: waiting, running, or how its last start ended."""
    events = [line for line in read_lines(run / "ledger.jsonl") if "event" in line]
    ends = [line for line in events if line["event"] == "slurm_end"]
    ended = bool(ends) and events[-1]["event"] == "slurm_end"
    state = "waiting" if not events else "running"
    if ended:
        state = "done" if ends[-1]["code"] == 0 else str(ends[-1]["why"])
    metrics = [line for line in read_lines(run / "metrics.jsonl") if "step" in line]
    placed = [line for line in events if line["event"] == "slurm_placed"]
    times = sorted(line["step_s"] for line in metrics[1:] if "step_s" in line)  # the first step warms up
    return {
        "state": state,
        "layout": placed[-1]["layout"] if placed else None,
        "steps": metrics[-1]["step"] if metrics else 0,
        "loss": metrics[-1].get("loss") if metrics else None,
        "step_s": times[len(times) // 2] if times else None,
    }


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
