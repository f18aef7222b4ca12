"""The core seconds of our engine's operators on CPU ranks, from steps that were measured under several layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from launcher.cluster.measured import EngineSeconds
from launcher.cost.cores import ENGINE, cores_of
from launcher.cost.model import CostModel
from launcher.layout import Layout
from launcher.layout.job import Job

NAMES = ("layer_s", "micro_batch_s", "step_s", "unit_s", "call_s", "element_s", "byte_s")
WAITS = ("idle", "chain")
TINY = 1e-9
MORE_SAMPLES = 3  # than there are seconds to tell apart, before their distance says how they scatter
SCATTER = 0.05  # of steps of one layout, as a share: what few samples cannot show
PRIOR = 0.5  # how far a machine's seconds are from the usual ones, as a share
PRIOR_WAITS = (0.3, 1.5)  # how far its shares of waiting are from the usual ones: by what else runs there


@dataclass(frozen=True)
class StepSample:
    """A step of a job under a layout: core seconds of all ranks together, and how long it took."""

    job: Job
    layout: Layout
    core_s: float
    step_s: float | None = None


def fit_engine(samples: Sequence[StepSample], usual: EngineSeconds = ENGINE) -> EngineSeconds:
    """The engine's seconds that explain the samples best, each by its share, none below zero.

    A step's core seconds are linear in them: what each adds is what the model says with that one alone. Few samples
    with noise do not tell all of them apart; so each is drawn to its usual value, the more the noisier the samples are.
    """
    zero = EngineSeconds(**dict.fromkeys(NAMES, 0.0) | {"layer_s": TINY})
    base = [core_seconds(sample, zero) for sample in samples]
    slopes = [
        [(core_seconds(sample, replace(zero, **{name: 1.0})) - base[i]) for name in NAMES]
        for i, sample in enumerate(samples)
    ]
    rows = [[slope / samples[i].core_s for slope in each] for i, each in enumerate(slopes)]
    wanted = [1 - base[i] / sample.core_s for i, sample in enumerate(samples)]
    noise = _error(rows, wanted, non_negative(rows, wanted))
    if len(samples) < len(NAMES) + MORE_SAMPLES:  # they can be met exactly, whatever is true
        noise = max(noise, SCATTER)
    drawn = [[noise / PRIOR / getattr(usual, name) if i == k else 0.0 for i in range(len(NAMES))]
             for k, name in enumerate(NAMES)]  # fmt: skip
    found = non_negative([*rows, *drawn], [*wanted, *[noise / PRIOR] * len(NAMES)])
    seconds = dict(zip(NAMES, found, strict=True)) | {"error": round(_error(rows, wanted, found), 4)}
    engine = EngineSeconds(**seconds | {"layer_s": max(seconds["layer_s"], TINY)})
    return _waits(samples, engine, usual, noise)


def _waits(samples: Sequence[StepSample], engine: EngineSeconds, usual: EngineSeconds, noise: float) -> EngineSeconds:
    """The shares of ranks' own work and of their collectives in which cores idle, by what steps took more than their
    core seconds over cores. Drawn to the usual ones as the seconds are.
    """
    none = replace(engine, idle=0.0, chain=0.0)
    timed = [(sample, sample.step_s) for sample in samples if sample.step_s]
    base = [step_seconds(sample, none) for sample, _ in timed]
    rows = [
        [(step_seconds(sample, replace(none, **{name: 1.0})) - base[i]) / took for name in WAITS]
        for i, (sample, took) in enumerate(timed)
    ]
    wanted = [(took - sample.core_s / _cores(sample)) / took for sample, took in timed]
    for i, width in enumerate(PRIOR_WAITS):
        weight = max(noise, TINY) / width
        rows.append([weight if k == i else 0.0 for k in range(len(WAITS))])
        wanted.append(weight * (getattr(usual, WAITS[i]) or 0.0))
    return replace(engine, **dict(zip(WAITS, non_negative(rows, wanted), strict=True)))


def _error(rows: Sequence[Sequence[float]], wanted: Sequence[float], found: Sequence[float]) -> float:
    """Mean distance of the samples from what the seconds say, as a share."""
    said = [sum(a * x for a, x in zip(row, found, strict=True)) for row in rows]
    return sum(abs(a - b) for a, b in zip(said, wanted, strict=True)) / len(wanted)


def _cores(sample: StepSample) -> int:
    return cores_of(sample.job.cluster, sample.layout)


def core_seconds(sample: StepSample, engine: EngineSeconds) -> float:
    """Of all ranks together, in a step."""
    return _model(sample, engine).core_seconds(sample.layout)


def step_seconds(sample: StepSample, engine: EngineSeconds) -> float:
    """How long a step takes."""
    return _model(sample, engine).step_s(sample.layout)


def _model(sample: StepSample, engine: EngineSeconds) -> CostModel:
    cluster = sample.job.cluster
    measured = replace(cluster.measured, engine=engine)
    return CostModel(replace(sample.job, cluster=replace(cluster, measured=measured)))


def non_negative(rows: Sequence[Sequence[float]], wanted: Sequence[float]) -> list[float]:
    """Least squares with no value below zero: the best of the sets of values that may be above it. For few values."""
    width = len(rows[0])
    best, least = [0.0] * width, sum(b * b for b in wanted)
    for size in range(1, width + 1):
        for kept in combinations(range(width), size):
            values = _solved([[row[i] for i in kept] for row in rows], wanted)
            if values is None or min(values) < 0:
                continue
            whole = [0.0] * width
            for i, value in zip(kept, values, strict=True):
                whole[i] = value
            error = sum(
                (sum(a * x for a, x in zip(row, whole, strict=True)) - b) ** 2
                for row, b in zip(rows, wanted, strict=True)
            )
            if error < least:
                best, least = whole, error
    return best


def _solved(rows: Sequence[Sequence[float]], wanted: Sequence[float]) -> list[float] | None:
    """Least squares by the normal equations; None where they have no single answer."""
    n = len(rows[0])
    matrix = [
        [sum(r[i] * r[j] for r in rows) for j in range(n)] + [sum(r[i] * b for r, b in zip(rows, wanted, strict=True))]
        for i in range(n)
    ]
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(matrix[k][i]))
        if abs(matrix[pivot][i]) < 1e-12:
            return None
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        for k in range(n):
            if k != i:
                factor = matrix[k][i] / matrix[i][i]
                matrix[k] = [a - factor * b for a, b in zip(matrix[k], matrix[i], strict=True)]
    return [matrix[i][n] / matrix[i][i] for i in range(n)]
