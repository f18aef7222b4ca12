"""What a run measured, as parts of its page: next to what was predicted, over its steps, of its starts, its origin."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from math import isfinite
from types import MappingProxyType

from launcher.planner import Plan
from launcher.report import facts
from launcher.report.facts import RunFacts
from launcher.report.markup import details, paragraph, section, table
from launcher.run.ledger import PHASE_WORDS
from launcher.run.metrics import PARTS
from launcher.units import format_bytes, format_seconds

# What is predicted of each measured part, as parts of the estimate's time.
PREDICTED: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "forward_backward_s": ("compute", "tp_comm", "cp_comm", "ep_comm", "pp_comm", "bubble"),
    "exposed_tp_s": ("tp_comm",),
    "exposed_cp_s": ("cp_comm",),
    "exposed_pp_s": ("pp_comm", "bubble"),
    "exposed_dp_s": ("dp_comm",),
    "optimizer_s": ("optimizer",),
})  # fmt: skip
NAMED_PACKAGES = ("torch", "deepspeed", "numpy", "transformers", "hydra_core", "omegaconf", "wandb")


def measured(plan: Plan, run: RunFacts) -> str:
    """Compare predicted with measured values: the step, its parts, the memory."""
    found, estimate = run.measured, plan.estimate
    if found.step_s is None:
        return section("Predicted and measured", paragraph("No finished step yet: nothing was measured."))
    rows = [_compared("step", estimate["step_time_s"], found.step_s)]
    rows += [_compared(PARTS[name], _predicted(estimate["time"], name), s) for name, s in found.split_s.items()]
    if found.memory_bytes:
        on_cuda = plan.job.cluster.node.gpu.kind == "cuda"
        kind = "memory, allocated" if on_cuda else "memory, resident"
        predicted, real = estimate["memory_bytes_per_gpu"], found.memory_bytes
        ratio = f"{predicted / real:.2f}" if on_cuda else ""
        rows.append([kind, format_bytes(predicted), format_bytes(real), ratio])
    note = f"Medians of {found.steps} steps without the first ones, on one rank. "
    note += 'Parts after "including" are within forward and backward.'
    if plan.job.cluster.node.gpu.kind == "cpu":
        note += " Resident memory has the interpreter and its libraries in it. CPU ranks share cores: who waits for"
        note += " another leaves it the core, so that a rank's parts differ from the predicted ones."
    return section(
        "Predicted and measured",
        table(["", "predicted", "measured", "ratio"], rows, numbers=(1, 2, 3)),
        paragraph(note, dim=True),
    )


def _predicted(time: Mapping[str, float], name: str) -> float | None:
    parts = [time[part] for part in PREDICTED.get(name, ()) if part in time]
    return sum(parts) if parts else None


def _compared(name: str, predicted: float | None, real: float) -> list[str]:
    if predicted is None:
        return [name, "", format_seconds(real), ""]
    ratio = f"{predicted / real:.2f}" if real else ""
    return [name, format_seconds(predicted), format_seconds(real), ratio]


def curves(run: RunFacts, plan: Plan) -> str:
    """Leave places for the curves over the steps, which the page's script draws."""
    names = {"curve-loss": "Loss", "curve-step-time": "Step time, s", "curve-tokens": "Throughput, tokens/s"}
    drawn = [curve["id"] for curve in facts.curves(run, plan)]
    lost = sum(step.loss is not None and not isfinite(step.loss) for step in run.steps)
    number = f"{lost} steps" if lost > 1 else "1 step"
    note = paragraph(f"The loss was not a number in {number}, a gap in the curve.") if lost else ""
    return section("Over the steps", note, *(f'<h3>{names[i]}</h3><div id="{i}"></div>' for i in drawn))


def starts(run: RunFacts) -> str:
    """Show how long each phase of each start took, and who was last."""
    several = run.starts > 1
    rows = [
        [*([str(phase.start or 1)] if several else []), PHASE_WORDS[phase.phase], format_seconds(phase.median_s),
         f"{format_seconds(phase.slowest_s)}, {phase.slowest}" if phase.slowest_s > phase.median_s else ""]
        for phase in run.phases
    ]  # fmt: skip
    columns = [*(["start"] if several else []), "phase", "after the command", "slowest"]
    title = f"{run.starts} starts" if several else "The start"
    return section(title, table(columns, rows, numbers=(len(columns) - 2,)))


def origin(run: RunFacts) -> str:
    """Show by what the run was started: command, code, versions."""
    noted = run.origin
    if noted is None:
        return ""
    code = "unknown: its folder is in no git repository"
    if noted.commit:
        code = f"{noted.commit}{', with changes (code.diff)' if noted.changed else ''}"
    known = [f"{name} {noted.packages[name]}" for name in NAMED_PACKAGES if name in noted.packages]
    rows = [
        ["folder", noted.work_dir],
        ["commit", code],
        ["hosts", ", ".join(run.hosts) or "unknown"],
        ["interpreter", noted.python],
        ["versions", ", ".join(known)],
    ]
    every = ", ".join(f"{name} {version}" for name, version in noted.packages.items())
    return section(
        "What it ran with",
        f"<pre>{escape(run.command)}</pre>",
        f'<div class="wide bare">{table(["", ""], rows)}</div>',
        details(f"All {len(noted.packages)} packages", paragraph(every)),
    )
