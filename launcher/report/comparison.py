"""Compares two runs, plans or measurements: what differs, and whether it is more than noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from math import sqrt
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any

from launcher.errors import InputError
from launcher.planner import Plan, read_plan
from launcher.planner.record import check_estimate
from launcher.report.facts import RunFacts
from launcher.run.folder import RunFolder, plan_file
from launcher.run.metrics import StepMetrics, after_warmup
from launcher.run.rates import read_rates
from launcher.text import printable
from launcher.units import format_bytes, format_seconds

NORMAL_95 = 1.96
MAD_TO_SIGMA = 1.4826  # of a normal distribution
MEDIAN_TO_MEAN = 1.2533  # standard error of a median over that of a mean, for a normal distribution
FEW = 3  # steps: with fewer, the noise is unknown
SAME = 0.0005  # as a share
LONGEST_SETTING = 1000  # characters
FAR = 9.0  # as a share: more than this is said as a factor


def factor(value: float) -> str:
    """Format a large factor: 80.7, 4,556."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its plan, and the steps of a training run or the rows of a measurement."""

    name: str
    plan: Plan
    steps: Sequence[StepMetrics] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    run: RunFacts | None = None

    @classmethod
    def read(cls, path: Path) -> Side:
        """Read a run folder or a plan file; raises InputError where there is neither."""
        plan = read_plan(plan_file(path))
        check_estimate(plan, str(path))
        if not path.is_dir():
            return cls(str(path), plan)
        folder = RunFolder(path)
        run = RunFacts.read(folder)
        return cls(str(path), plan, run.steps, (read_rates(folder.result) or {}).get("results", ()), run)


@dataclass(frozen=True)
class ChangedSetting:
    """A setting with another value in B than in A."""

    key: str
    a: str
    b: str

    def __str__(self) -> str:
        return printable(f"{self.key}: {self.a} → {self.b}", longest=LONGEST_SETTING)


@dataclass(frozen=True)
class MeasuredChange:
    """One quantity on both sides. `worse` is how much worse B is, as a fraction of A; `noise` its 95 % half-width.

    `noise` is None for a single recorded value; `judged` is False if no threshold applies.
    """

    name: str
    a: str
    b: str
    worse: float | None = None
    noise: float | None = None
    judged: bool = True

    @property
    def verdict(self) -> str:
        """The change in words."""
        if self.worse is None:
            return ""
        if abs(self.worse) < SAME:
            return "the same"
        if self.noise is not None and abs(self.worse) <= self.noise:
            return f"within noise (± {self.noise:.1%})"
        if self.worse > FAR:
            return f"worse: {factor(1 + self.worse)} × A"
        spread = f" ± {self.noise:.1%}" if self.noise is not None else ""
        return f"{'worse' if self.worse > 0 else 'better'} by {abs(self.worse):.1%}{spread}"

    def exceeds(self, threshold: float) -> bool:
        """Return whether B is worse by more than `threshold` and by more than the noise."""
        return self.judged and self.worse is not None and self.worse > max(threshold, self.noise or 0.0)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "a": self.a, "b": self.b, "worse": self.worse, "noise": self.noise}


def check_comparable(a: Side, b: Side) -> None:
    """Raise InputError where one side is a measurement and the other is not."""
    if bool(a.rows) != bool(b.rows):
        raise InputError(f"{a.name} and {b.name} cannot be compared: one is a measurement, the other is not")


def changes(a: Side, b: Side) -> list[MeasuredChange]:
    """Return the changes of what was measured on both sides; for plans, of what is estimated."""
    if a.rows and b.rows:
        return list(_rates(a.rows, b.rows))
    if a.steps and b.steps:
        return list(_training(a.steps, b.steps))
    return list(_estimates(a.plan, b.plan))


# Where the settings of a group are in a plan; two parts with the same key share its group.
GROUPS = (
    *(("cluster", "job.cluster"), ("model", "job.model"), ("stack", "job.stack"), ("train", "job.training")),
    *(("layout", "layout"), ("train", "options.train"), ("recipe", "options.recipe")),
    *(("tracking", "options.tracking"), ("program", "options.program"), ("tokens", "options.tokens")),
)


def differences(a: Side, b: Side) -> list[ChangedSetting]:
    """Return the settings that differ, and, of two runs, the code and the packages that they began with."""
    found = [s for key, part in GROUPS for s in _differing(key, *(attrgetter(part)(side.plan) for side in (a, b)))]
    return [*found, *_origins(a, b)]


def _differing(prefix: str, a: object, b: object) -> Iterator[ChangedSetting]:
    if a == b:
        return
    if is_dataclass(a) and type(a) is type(b):
        for f in fields(a):
            yield from _differing(f"{prefix}.{f.name}", getattr(a, f.name), getattr(b, f.name))
    else:
        yield ChangedSetting(prefix, _plain(a), _plain(b))


def _plain(value: object) -> str:
    """Format a value as a user types it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(_plain, value))}]" if isinstance(value, list | tuple) else str(value)


def _origins(a: Side, b: Side) -> Iterator[ChangedSetting]:
    before, after = (side.run.origin if side.run else None for side in (a, b))
    if before is None or after is None:
        return
    if before.commit != after.commit:
        yield ChangedSetting("commit", before.commit or "unknown", after.commit or "unknown")
    for name, version in before.packages.items():
        if (other := after.packages.get(name)) != version:
            yield ChangedSetting(f"package {name}", version, other or "none")


def _training(a: Sequence[StepMetrics], b: Sequence[StepMetrics]) -> Iterator[MeasuredChange]:
    times = [_known([step.step_s for step in after_warmup(steps)]) for steps in (a, b)]
    if all(times):
        first, second = (median(values) for values in times)
        yield MeasuredChange(
            "step time", format_seconds(first), format_seconds(second), second / first - 1, _noise(*times)
        )
    rates = [_known([step.tokens_per_s for step in after_warmup(steps)]) for steps in (a, b)]
    if all(rates):
        first, second = (median(values) for values in rates)
        yield MeasuredChange("tokens/s", f"{first:,.0f}", f"{second:,.0f}", 1 - second / first, _noise(*rates))
    first, second = (max(_known([step.memory_bytes for step in steps]), default=0.0) for steps in (a, b))
    if first and second:
        yield MeasuredChange("memory", format_bytes(first), format_bytes(second), second / first - 1)
    yield from _losses(a, b)


def _losses(a: Sequence[StepMetrics], b: Sequence[StepMetrics]) -> Iterator[MeasuredChange]:
    """Yield the loss at the last common step: shown, not judged (another seed or layout may change it)."""
    losses = [{step.step: step.loss for step in steps if step.loss is not None} for steps in (a, b)]
    if common := losses[0].keys() & losses[1].keys():
        last = max(common)
        first, second = (found[last] for found in losses)
        yield MeasuredChange(f"loss at step {last}", f"{first:.4f}", f"{second:.4f}", judged=False)


def _rates(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Iterator[MeasuredChange]:
    """Yield one change per operation and axis of a measurement: the median over its sizes."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    known = {_point(row): _rate(row) for row in a}
    for row in b:
        if (before := known.get(_point(row))) and (now := _rate(row)):
            pairs.setdefault(_family(row), []).append((before, now))
    for name, rates in pairs.items():
        ratios = [now / before for before, now in rates]
        low, high = min(rates), max(rates)
        span = f"{len(rates)} sizes" if len(rates) > 1 else "1 size"
        yield MeasuredChange(
            f"{name} ({span})",
            f"{low[0]:.3g}–{high[0]:.3g}",
            f"{low[1]:.3g}–{high[1]:.3g}",
            1 - median(ratios),
            _spread(ratios),
        )


def _rate(row: Mapping[str, Any]) -> float:
    return float(row.get("busbw_gbytes_per_s") or row.get("tflops") or row.get("gbytes_per_s") or 0.0)


def _family(row: Mapping[str, Any]) -> str:
    if "axis" in row:
        return f"{row['operation']} over {row['axis']}, GB/s"
    if "tflops" in row:
        return f"{row.get('dtype', '')} {row.get('name', '')}, TFLOP/s"
    return f"{row.get('name', '')}, GB/s"


def _point(row: Mapping[str, Any]) -> tuple[Any, ...]:
    keys = ("operation", "axis", "bytes", "group_size", "name", "dtype", "m", "n", "k", "writers")
    return tuple(row.get(key) for key in keys)


def _estimates(a: Plan, b: Plan) -> Iterator[MeasuredChange]:
    if not a.estimate or not b.estimate:  # a program without an estimate
        return
    first, second = a.estimate["step_time_s"], b.estimate["step_time_s"]
    yield MeasuredChange("estimated step time", format_seconds(first), format_seconds(second), second / first - 1)
    before, after = a.estimate["memory_bytes_per_gpu"], b.estimate["memory_bytes_per_gpu"]
    yield MeasuredChange(
        "estimated memory", format_bytes(before), format_bytes(after), after / before - 1, judged=False
    )


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _noise(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the 95 % half-width of the ratio of two medians, from the median absolute deviations of both."""
    if min(len(a), len(b)) < FEW:
        return None
    return NORMAL_95 * sqrt(sum((_standard_error(values) / median(values)) ** 2 for values in (a, b)))


def _spread(ratios: Sequence[float]) -> float | None:
    return NORMAL_95 * _standard_error(ratios) if len(ratios) >= FEW else None


def _standard_error(values: Sequence[float]) -> float:
    middle = median(values)
    return MEDIAN_TO_MEAN * MAD_TO_SIGMA * median(abs(value - middle) for value in values) / sqrt(len(values))
