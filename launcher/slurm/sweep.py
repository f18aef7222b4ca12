"""A sweep: one job array, one folder per run (0, 1, …), one table of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import InputError
from launcher.files import read_json, write_json, write_text
from launcher.planner import Plan
from launcher.run.folder import RunFolder, SweepFolder
from launcher.run.ledger import END, PLACED, read_events
from launcher.run.metrics import read_steps, summarise_steps
from launcher.schema import from_plain
from launcher.slurm.request import SubmitRequest, Where, cpus_per_task, gpus_per_node, submit_request
from launcher.slurm.settings import SlurmSettings
from launcher.text import printable

COLUMNS = ("run", "state", "layout", "steps", "loss", "step_s", "overrides")


@dataclass(frozen=True)
class SweepMember:
    """One run of a sweep: its own overrides, and its plan."""

    overrides: tuple[str, ...]
    plan: Plan


@dataclass(frozen=True)
class _Members:
    """sweep.json: the overrides of each run."""

    runs: tuple[tuple[str, ...], ...]


def sweep_request(
    members: Sequence[SweepMember], settings: SlurmSettings, where: Where, *, without: Sequence[str] = ()
) -> SubmitRequest:
    """Return the sbatch command of a whole sweep; raises InputError if its runs need different resources."""
    needs = [_needs(member.plan, settings) for member in members]
    odd = [i for i, need in enumerate(needs) if need != needs[0]]
    if odd:
        raise InputError(
            f"the runs of one sweep are one job array and must ask for the same nodes: run 0 wants {needs[0]}, "
            f"run {odd[0]} ({' '.join(members[odd[0]].overrides)}) wants {needs[odd[0]]}; submit them separately"
        )
    return submit_request(members[0].plan, settings, where, without=without, array_size=len(members))


def write_sweep(folder: Path, members: Sequence[SweepMember]) -> None:
    """Record the overrides of each run, for the table."""
    write_json(SweepFolder(folder).members, {"runs": [list(member.overrides) for member in members]})


def results(folder: Path, *, ended: bool = False, members: Mapping[int, str] | None = None) -> list[dict[str, Any]]:
    """Return one row per run of a sweep, from its folder; empty if the folder is not a sweep.

    `ended`: the whole array has ended by Slurm's record, so a run without its own end was cancelled or killed.
    `members`: Slurm's states of the ended tasks.
    """
    sweep = SweepFolder(folder)
    if not sweep.members.is_file():
        return []
    runs = from_plain(_Members, read_json(sweep.members, remedy="submit the sweep again"), sweep.members.name).runs
    rows = [{"run": i, "overrides": " ".join(words), **_row(sweep.run(i))} for i, words in enumerate(runs)]
    cut_off = {"waiting": "never started", "running": "ended by Slurm"}
    for index, row in enumerate(rows):
        word = (members or {}).get(index, "" if ended else None)
        if word is not None and row["state"] in cut_off:
            row["state"] = cut_off[row["state"]] + (f" ({word.lower()})" if word else "")
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as aligned text."""
    cells = [COLUMNS, *([_cell(row[name]) for name in COLUMNS] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join(lines)


def update_table(run_folder: Path) -> None:
    """Rewrite the table of a sweep when one of its runs ends: the last one completes it."""
    sweep = SweepFolder(run_folder.parent)
    rows = results(sweep.path)
    if rows:
        write_json(sweep.results, {"runs": rows})
        write_text(sweep.table, table(rows) + "\n")


def _needs(plan: Plan, settings: SlurmSettings) -> str:
    nodes, gpus, cpus = plan.placement.num_nodes, gpus_per_node(plan, settings), cpus_per_task(plan, settings)
    return f"{nodes} nodes × {gpus} GPUs, {cpus} cores each"


def _row(run: RunFolder) -> dict[str, Any]:
    """Return the progress of one run. `state`: waiting, running, or how its last start ended."""
    events = read_events(run.ledger)
    state = "running" if events else "waiting"
    if events and events[-1].event == END:
        last = events[-1].details
        state = "done" if last.get("code") == 0 else printable(str(last.get("why")), longest=200)
    steps = read_steps(run.metrics)
    placed = [event.details for event in events if event.event == PLACED]
    return {
        "state": state,
        "layout": printable(str(placed[-1].get("layout"))) if placed else None,
        "steps": steps[-1].step if steps else 0,
        "loss": steps[-1].loss if steps else None,
        "step_s": summarise_steps(steps).step_s,
    }


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
