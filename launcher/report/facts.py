"""The content of a page, read or computed once: plain data for its script, typed values for its text."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.cost.model import CostModel
from launcher.errors import LauncherError
from launcher.layout import LayoutRequest
from launcher.planner import Plan
from launcher.planner.explain import LINK_NAMES
from launcher.planner.result import Candidate, SearchResult
from launcher.planner.search import search
from launcher.report.timeline import Box, timeline
from launcher.run.folder import RunFolder
from launcher.run.ledger import PhaseTime, read_phases, summarise
from launcher.run.metrics import Measured, StepMetrics, read_steps, summarise_steps
from launcher.run.node_state import node_states
from launcher.run.owner import read_owner
from launcher.run.provenance import Provenance, read_provenance

ALTERNATIVES = 40
MAX_BOXES = 12_000  # of a pipeline: if there are more, omit micro-batches in the middle of the step


@dataclass(frozen=True)
class RunFacts:
    """The content of a run folder so far. `goodput`: time in effective steps over total time; None: unknown."""

    name: str
    steps: Sequence[StepMetrics] = ()
    measured: Measured = field(default_factory=Measured)
    phases: Sequence[PhaseTime] = ()
    starts: int = 0
    goodput: float | None = None
    origin: Provenance | None = None
    hosts: Sequence[str] = ()
    submitted: bool = False

    @property
    def began(self) -> bool:
        """Whether anything of the run happened: a folder of `launcher plan run_dir=` has a plan alone."""
        return bool(self.steps or self.phases or self.origin)

    @property
    def command(self) -> str:
        """The command that started the run, as a shell takes it."""
        if self.origin is None:
            return ""
        words = ["launcher", "submit" if self.submitted else "run", *self.origin.words]
        return shlex.join([*words, *(["--", *self.origin.args] if self.origin.args else [])])

    @classmethod
    def read(cls, folder: RunFolder) -> RunFacts:
        """Read a folder; what does not exist yet is empty."""
        steps, phases = read_steps(folder.metrics), read_phases(folder.ledger)
        return cls(
            name=folder.path.name,
            steps=steps,
            measured=summarise_steps(steps),
            phases=summarise(phases),
            starts=max((line.start for line in phases), default=0),
            goodput=_goodput(steps, [line.at for line in phases]),
            origin=read_provenance(folder) if folder.provenance.is_file() else None,
            hosts=list(dict.fromkeys(state.host for state in node_states(folder))),
            submitted=bool((owner := read_owner(folder)) and owner.job_id is not None),
        )


def _goodput(steps: Sequence[StepMetrics], moments: Sequence[float]) -> float | None:
    """Compute the goodput: metrics.jsonl keeps the last run of each step, so its steps are the effective ones."""
    trained_s = sum(step.step_s for step in steps if step.step_s)
    taken_s = max(moments, default=0.0) - min(moments, default=0.0)
    return trained_s / taken_s if 0 < trained_s <= taken_s else None


def alternatives(plan: Plan) -> SearchResult | None:
    """Search alternatives for the same job; None if no layout fits (the plan pins one that does not)."""
    request = LayoutRequest(tp_across_domains=plan.layout.tp_across_domains)
    try:
        return search(plan.job, request, top=ALTERNATIVES)
    except LauncherError:
        return None


def is_chosen(plan: Plan, candidate: Candidate) -> bool:
    """Return whether an alternative is the plan itself."""
    return candidate.layout == plan.layout


def stage_memory(plan: Plan) -> list[Mapping[str, float]]:
    """Return the estimated bytes by part for the ranks of each pipeline stage."""
    model = CostModel(plan.job)
    return [model.stage_parts(plan.layout, stage) for stage in range(plan.layout.pp)]


def placement_data(plan: Plan) -> dict[str, Any]:
    """Return data to place every rank on its GPU: the script derives coordinates from strides."""
    grid, placement = plan.grid, plan.placement
    node = plan.job.cluster.node
    return {
        "nodes": placement.num_nodes,
        "per_node": node.num_gpus,
        "domains": [list(domain) for domain in node.domains],
        "order": list(node.gpu_order),
        "size": grid.size,
        "degrees": {axis: grid.degree(axis) for axis in grid.axes},
        "strides": {axis: grid.strides[axis] for axis in grid.axes},
        "links": {axis: LINK_NAMES[placement.axis_link(axis)] for axis in grid.axes if grid.degree(axis) > 1},
        "hosts": list(plan.hosts),
    }


@dataclass(frozen=True)
class Pipeline:
    """One step as boxes in time: `unit_s` seconds per unit; `left_out` of `micro_batches` are not drawn."""

    boxes: Sequence[Box]
    end: float
    unit_s: float
    micro_batches: int
    left_out: int
    after_s: float  # gradients and optimizer, after the last backward pass

    def to_data(self, ranks: int) -> dict[str, Any]:
        """Return plain data for the page's script."""
        drawn = [
            [b.rank, b.task.kind, b.task.stage, b.task.micro_batch, round(b.start, 3), round(b.end, 3)]
            for b in self.boxes
        ]
        after = self.after_s / self.unit_s if self.unit_s else 0.0
        drawn += [[rank, "O", -1, -1, round(self.end, 3), round(self.end + after, 3)] for rank in range(ranks)]
        return {"ranks": ranks, "boxes": drawn, "end": round(self.end + after, 3), "unit_s": self.unit_s}


def pipeline(plan: Plan, *, max_boxes: int = MAX_BOXES) -> Pipeline:
    """Return the schedule of a step, scaled to the estimated duration."""
    layout, time = plan.layout, plan.estimate["time"]
    total = layout.num_micro_batches(plan.job.training.global_batch)
    most = max(2 * layout.pp, max_boxes // (2 * layout.pp * layout.virtual_stages) // layout.pp * layout.pp)
    shown = min(total, most)
    boxes = timeline(
        layout.schedule,
        pp=layout.pp,
        virtual_stages=layout.virtual_stages,
        num_micro_batches=shown,
        backward=3.0 if layout.recompute == "full" else 2.0,
    )
    after_s = time.get("dp_comm", 0.0) + time.get("optimizer", 0.0)
    end = max(box.end for box in boxes)
    per_step_s = plan.estimate["step_time_s"] - after_s
    whole = end + (total - shown) * (boxes[0].end - boxes[0].start) * layout.virtual_stages * (
        4.0 if layout.recompute == "full" else 3.0
    )
    return Pipeline(boxes, end, per_step_s / whole, total, total - shown, after_s)


def curves(run: RunFacts, plan: Plan) -> list[dict[str, Any]]:
    """Return loss, step time and throughput over the steps; NaN values leave gaps."""
    xs = [step.step for step in run.steps]
    predicted = [plan.estimate["step_time_s"]] * len(xs)
    found = [
        _curve("loss", xs, "", {"loss": [step.loss for step in run.steps]}),
        _curve("step-time", xs, "s", {"measured": [step.step_s for step in run.steps], "predicted": predicted}),
        _curve("tokens", xs, "tokens/s", {"tokens/s": [step.tokens_per_s for step in run.steps]}),
    ]  # fmt: skip
    return [curve for curve in found if curve is not None]


def _curve(
    name: str, xs: Sequence[int], unit: str, lines: Mapping[str, Sequence[float | None]]
) -> dict[str, Any] | None:
    plain = {
        label: [None if y is None or not math.isfinite(y) else y for y in values] for label, values in lines.items()
    }
    first = next(iter(plain.values()))
    if not any(y is not None for y in first):
        return None
    drawn = [{"name": label, "ys": ys, "dash": label == "predicted"} for label, ys in plain.items()]
    return {"id": f"curve-{name}", "x": "step", "xs": list(xs), "unit": unit, "lines": drawn}
