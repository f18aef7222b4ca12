"""How far a run is: its last step, what is left, and while it starts, where the start is. From its folder alone."""

from __future__ import annotations

import time
from dataclasses import dataclass

from launcher.errors import InputError
from launcher.files import read_json
from launcher.run.folder import RunFolder
from launcher.run.ledger import PHASES, PhaseLine, read_phases
from launcher.run.metrics import read_steps, summarise_steps
from launcher.run.owner import read_owner
from launcher.units import format_seconds

# What goes on once a phase of the start was reached.
NEXT = {
    "planned": "torch is being imported",
    "preloaded": "the fork server is starting",
    "server": "the nodes are meeting",
    "met": "the ranks are being started",
    "forked": "the ranks are starting",
    "script": "the ranks run their program, and have made no process group yet",
    "groups": "the process groups are made, and the first step goes on",
}


@dataclass(frozen=True)
class Progress:
    """The last finished step with its loss, medians of a step's time and tokens/s, and how long the rest may take.

    total_steps: of a recipe; a program of the user's does not say. phase, phase_s: the last phase of a start that has
    finished no step yet, and for how long it has been reached.
    """

    step: int | None = None
    loss: float | None = None
    step_time_s: float | None = None
    total_steps: int | None = None
    tokens_per_s: float | None = None
    left_s: float | None = None
    phase: str | None = None
    phase_s: float | None = None

    def __str__(self) -> str:
        if self.step is None:
            since = f", for {format_seconds(self.phase_s)}" if self.phase_s is not None else ""
            return f"starting: {NEXT[self.phase]}{since}" if self.phase in NEXT else ""
        parts = [f"step {self.step}" + (f" of {self.total_steps}" if self.total_steps else "")]
        parts += [] if self.loss is None else [f"loss {self.loss:.4f}"]
        parts += [] if self.step_time_s is None else [f"{format_seconds(self.step_time_s)} a step"]
        parts += [] if self.tokens_per_s is None else [f"{self.tokens_per_s:,.0f} tokens/s"]
        parts += [f"{format_seconds(self.left_s)} left"] if self.left_s else []
        return ", ".join(parts)


def progress(folder: RunFolder) -> Progress:
    """How far a run is; nothing is known of a run that logs no metrics and has no ledger."""
    steps, total = read_steps(folder.metrics), planned_steps(folder)
    if not steps:
        reached = _newest_phase(folder)
        if reached is None or reached.phase not in NEXT:
            return Progress(total_steps=total)
        return Progress(total_steps=total, phase=reached.phase, phase_s=max(0.0, time.time() - reached.at))
    last, measured = steps[-1], summarise_steps(steps)
    left = None if total is None or measured.step_s is None else max(0, total - last.step) * measured.step_s
    return Progress(last.step, last.loss, measured.step_s, total, measured.tokens_per_s, left)


def planned_steps(folder: RunFolder) -> int | None:
    """`train.steps` of the plan in force where a recipe runs; read as JSON, without the planner's classes."""
    try:
        plan = read_json(folder.present_plan, remedy="plan again")
    except (InputError, OSError):
        return None
    train = plan.get("train")
    steps = train.get("steps") if isinstance(train, dict) else None
    return steps if plan.get("program") is None and isinstance(steps, int) else None


def _newest_phase(folder: RunFolder) -> PhaseLine | None:
    """The last phase that the newest start of the present run has reached."""
    owner = read_owner(folder)
    since = owner.since if owner else 0.0
    lines = [line for line in read_phases(folder.ledger) if line.at >= since and line.phase in PHASES]
    return max(lines, key=lambda line: (line.start, PHASES.index(line.phase), line.at), default=None)
