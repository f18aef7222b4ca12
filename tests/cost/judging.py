"""How estimates compare with published runs: predictions, their errors, and the tables that pages show."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from published import RUNS, Run
from published import table as rows_of

from launcher.cost import CostModel
from launcher.cost.constants import DEFAULT, Constants

LEFT_OUT = ("error", "covered", "width")  # what is said of a software that is left out of the fit
FITTED = RUNS.parent / "left_out_constants.json"  # by `generalize.py --leave-out --record`
PAPERS = (
    ("Narayanan et al. 2021, table 1", "narayanan2021_table1", 2021),
    ("Korthikanti et al. 2022, table 5", "korthikanti2022_table5", 2022),
)


@dataclass(frozen=True)
class Prediction:
    """What the model says of a run."""

    step_s: float
    fits: bool
    interval_s: tuple[float, float]


def predict(runs: list[Run], constants: Constants) -> list[Prediction]:
    """Every run's estimate; runs of one job share a model."""
    models: dict[int, CostModel] = {}
    found = []
    for run in runs:
        if (model := models.get(id(run.job))) is None:
            model = models[id(run.job)] = CostModel(run.job, constants)
        estimate = model.estimate(run.layout)
        found.append(Prediction(estimate.step_time_s, estimate.fits, estimate.step_time_interval_s))
    return found


@dataclass(frozen=True)
class Judged:
    """How predictions of some runs compare with what was measured; shares of 1, None where nothing was measured."""

    rows: int
    error: float | None
    bias: float | None
    within: float | None
    covered: float | None
    width: float | None
    agrees: float | None
    false_fits: int
    out_of_memory: int


def judge(runs: Iterable[Run], predictions: Iterable[Prediction]) -> Judged:
    errors, covered, widths, verdicts = [], [], [], []
    for run, predicted in zip(runs, predictions, strict=True):
        if run.step_s:
            errors.append(predicted.step_s / run.step_s - 1)
            low, high = predicted.interval_s
            covered.append(low <= run.step_s <= high)
            widths.append((high - low) / predicted.step_s)
        if run.fits is not None:
            verdicts.append((predicted.fits, run.fits))
    return Judged(
        rows=len(errors),
        error=mean([abs(e) for e in errors]),
        bias=mean(errors),
        within=mean([abs(e) <= 0.1 for e in errors]),
        covered=mean(covered),
        width=mean(widths),
        agrees=mean([a == b for a, b in verdicts]),
        false_fits=sum(a and not b for a, b in verdicts),
        out_of_memory=sum(not b for _, b in verdicts),
    )


def kind(run: Run) -> str:
    """The software, and the GPU where it is no A100."""
    return run.stack + (" on H100" if run.job.cluster.node.gpu.name.startswith("h100") else "")


def fittable(runs: list[Run]) -> list[Run]:
    """The runs that constants are fitted to."""
    return [run for run in runs if run.step_s and not run.debugging and kind(run) == run.stack]


def judged_left_out(runs: list[Run], constants: Mapping[str, Constants]) -> dict[str, Judged]:
    """Judge each software by the constants that were fitted without it."""
    found = {}
    for name, fitted in constants.items():
        kept = [run for run in runs if kind(run) == name]
        found[name] = judge(kept, predict(kept, fitted))
    return found


def recorded_constants(file: Path = FITTED) -> dict[str, Constants]:
    """The constants of the last fit without each software."""
    return {name: replace(DEFAULT, **values) for name, values in json.loads(file.read_text()).items()}


def totals(left_out: Mapping[str, Judged]) -> dict[str, float | None]:
    """Means over all software that was left out, each counting the same."""
    known = [each for each in left_out.values() if each.error is not None]
    return {key: mean([getattr(each, key) for each in known]) for key in LEFT_OUT}


def stack_table(runs: list[Run], predictions: list[Prediction], left_out: Mapping[str, Judged]) -> list[str]:
    """The table by training software, as Markdown."""
    more = " left out of the fit: error | covered | width of the interval |" if left_out else ""
    lines = [f"| stack | runs | error | bias | within 10 % | interval covers | fits agrees | false fits |{more}"]
    lines.append("|---" + "|--:" * (10 if left_out else 7) + "|")
    kinds: dict[str, list[tuple[Run, Prediction]]] = defaultdict(list)
    for run, predicted in zip(runs, predictions, strict=True):
        kinds[kind(run)].append((run, predicted))
    for name in sorted(kinds):
        found = judge(*zip(*kinds[name], strict=True))
        lines.append(f"| {name} {_cells(found)}{_others(left_out.get(name)) if left_out else ''}")
    means = "".join(f" {percent(value)} |" for value in totals(left_out).values()) if left_out else ""
    return [*lines, f"| all {_cells(judge(runs, predictions))}{means}"]


def _cells(found: Judged) -> str:
    shares = (found.error, found.bias, found.within, found.covered, found.agrees)
    return f"| {found.rows} | {' | '.join(map(percent, shares))} | {found.false_fits} of {found.out_of_memory} |"


def _others(found: Judged | None) -> str:
    return "".join(f" {percent(getattr(found, key))} |" for key in LEFT_OUT) if found else " | | |"


def paper_table(title: str, source: str, year: int) -> list[str]:
    """A published table next to the estimates, as Markdown: as the source states its software, and by its name."""
    both = list(zip(rows_of(source), rows_of(source, stated=False), strict=True))
    lines = [f"**{title}**", "", f"| run | GPUs | layout | measured s | stack.year={year} | default |"]
    lines.append("|---|--:|---|--:|--:|--:|")
    for stated, plain in both:
        times = [f"{run.estimate().step_time_s:.2f} ({100 * run.error():+.1f} %)" for run in (stated, plain)]
        layout = stated.layout
        row = (stated.name, layout.world_size, layout.brief(), f"{stated.step_s:.2f}", *times)
        lines.append(f"| {' | '.join(map(str, row))} |")
    means = [100 * statistics.mean(abs(run.error()) for run in runs) for runs in zip(*both, strict=True)]
    return [*lines, f"| mean of absolute errors | | | | {means[0]:.1f} % | {means[1]:.1f} % |"]


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def mean(values: list[Any]) -> float | None:
    return statistics.mean(map(float, values)) if values else None
