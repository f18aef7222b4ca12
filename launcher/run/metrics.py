"""metrics.jsonl: one line for each finished step, written by a run's main rank."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, TextIO

from launcher.files import read_lines, read_new_lines
from launcher.units import format_seconds

WARMUP_STEPS = 3  # steps of each start excluded from measured times: first allocations, first messages between stages
FIRST = "first"  # key of the line with which a resumed run goes on
# The parts of a step, in words. Exposed parts are within forward and backward, except data parallelism's, which follow
# them; waiting in the pipeline includes its bubble.
PARTS: Mapping[str, str] = MappingProxyType({
    "data_s": "data",
    "forward_backward_s": "forward and backward",
    "exposed_tp_s": "including tensor-parallel collectives",
    "exposed_cp_s": "including context-parallel collectives",
    "exposed_pp_s": "including waiting for other stages",
    "exposed_dp_s": "gradients afterwards",
    "optimizer_s": "optimizer",
})  # fmt: skip


@dataclass(frozen=True)
class StepMetrics:
    """The numbers of one finished step, counted from 1; None: not measured or unknown.

    A line of the file has these keys, including those of `split_s` (of PARTS) and `other` (a script's own), and omits
    those that are None.
    """

    step: int
    loss: float | None = None
    grad_norm: float | None = None
    lr: float | None = None
    step_s: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    memory_bytes: int | None = None
    split_s: Mapping[str, float] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict)
    first: bool = False  # of a start that goes on after earlier steps; in the file alone

    @classmethod
    def of(cls, step: int, metrics: Mapping[str, Any]) -> StepMetrics:
        """Make it from the flat names of a line."""
        named = {name: metrics[name] for name in _NAMED if metrics.get(name) is not None}
        parts = {name: metrics[name] for name in PARTS if metrics.get(name) is not None}
        other = {name: value for name, value in metrics.items() if name not in _KNOWN}
        return cls(step, **named, split_s=parts, other=other, first=metrics.get(FIRST) is True)

    def to_line(self) -> dict[str, Any]:
        """Return the line of the file, as plain data."""
        named = {name: value for name in _NAMED if (value := getattr(self, name)) is not None}
        return {"step": self.step, **named, **self.split_s, **self.other}

    def brief(self, room: int) -> str:
        """Return the numbers that a narrow terminal has room for: whole ones, the most important first."""
        parts = [f"loss {self.loss:.4f}"] if self.loss is not None else []
        parts += [f"{format_seconds(self.step_s)}/step"] if self.step_s is not None else []
        parts += [f"{self.tokens_per_s:,.0f} tokens/s"] if self.tokens_per_s is not None else []
        parts += [f"mfu {self.mfu:.1%}"] if self.mfu is not None else []
        while parts and len("  ".join(parts)) > room:
            parts.pop()
        return "  ".join(parts)

    def __str__(self) -> str:
        """Return the main numbers on one line."""
        parts = [f"loss {self.loss:.4f}"] if self.loss is not None else []
        parts += [f"grad norm {self.grad_norm:.3f}"] if self.grad_norm is not None else []
        parts += [f"lr {self.lr:.2e}"] if self.lr is not None else []
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:,.0f} tokens/s")
        parts += [f"{format_seconds(self.step_s)}/step"] if self.step_s is not None else []
        if self.tokens_per_s is not None:
            parts.append("mfu unknown" if self.mfu is None else f"mfu {self.mfu:.1%}")
        return "  ".join(parts)


_NAMED = tuple(f.name for f in fields(StepMetrics) if f.name not in ("step", "split_s", "other", FIRST))
_NUMBERS = ("step", *_NAMED, *PARTS)
_KNOWN = {"step", FIRST, *_NAMED, *PARTS}


class MetricsFile:
    """Appends to metrics.jsonl. After a resume, drops the lines of steps that will run again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def log(self, metrics: StepMetrics) -> None:
        """Append the line of a finished step."""
        if self._file is None:
            kept = self._kept(before=metrics.step)
            self._file = self._path.open("a", buffering=1, encoding="utf-8")
            metrics = replace(metrics, first=bool(kept))
        self._file.write(_line(metrics))

    def _kept(self, *, before: int) -> list[StepMetrics]:
        """Drop the lines of steps that run again; return the others."""
        if not self._path.exists():
            return []
        kept = [line for line in read_steps(self._path) if line.step < before]
        temporary = self._path.with_name(f".{self._path.name}")
        temporary.write_text("".join(_line(each) for each in kept), encoding="utf-8")
        temporary.replace(self._path)
        return kept

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _line(metrics: StepMetrics) -> str:
    return json.dumps(metrics.to_line() | ({FIRST: True} if metrics.first else {})) + "\n"


def read_steps(path: Path) -> list[StepMetrics]:
    """Read the finished steps of a run, in order; empty if there are none yet."""
    return list(_steps(path))


def _steps(path: Path) -> Iterator[StepMetrics]:
    yield from _understood(read_lines(path))


def _understood(lines: Iterable[dict[str, Any]]) -> Iterator[StepMetrics]:
    for line in lines:
        step = line.get("step")
        if isinstance(step, int) and not any(name in line and not _is_number(line[name]) for name in _NUMBERS):
            yield StepMetrics.of(step, line)


def with_earlier(path: Path, steps: Sequence[StepMetrics]) -> list[StepMetrics]:
    """Return the steps of a run: those of its file before this start's first, and this start's."""
    earlier = [step for step in read_steps(path) if steps and step.step < steps[0].step]
    return [*earlier, *(replace(step, first=bool(earlier) and step is steps[0]) for step in steps)]


def read_new_steps(path: Path, position: int) -> tuple[list[StepMetrics], int]:
    """The steps that finished after byte `position` of the file, and the position after them."""
    lines, position = read_new_lines(path, position)
    return list(_understood(lines)), position


def _is_number(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return value is None or whole or isinstance(value, float)


@dataclass(frozen=True)
class Measured:
    """The measurement of some steps: medians without the first ones, and the largest memory. None: not measured."""

    steps: int = 0
    step_s: float | None = None
    split_s: Mapping[str, float] = field(default_factory=dict)
    tokens_per_s: float | None = None
    mfu: float | None = None
    memory_bytes: int | None = None


def summarise_steps(steps: Sequence[StepMetrics]) -> Measured:
    """Summarise a run or a part of it, by its steps after the warm-up."""
    warm = after_warmup(steps)
    names = [name for name in PARTS if any(name in step.split_s for step in warm)]
    memory = [step.memory_bytes for step in steps if step.memory_bytes is not None]
    return Measured(
        steps=len(steps),
        step_s=_median([step.step_s for step in warm]),
        split_s={name: median(s.split_s[name] for s in warm if name in s.split_s) for name in names},
        tokens_per_s=_median([step.tokens_per_s for step in warm]),
        mfu=_median([step.mfu for step in warm]),
        memory_bytes=max(memory, default=None),
    )


def after_warmup(steps: Sequence[StepMetrics]) -> Sequence[StepMetrics]:
    """Return the steps without the first ones of each start; all of them if nothing would be left."""
    found, since = [], 0
    for step in steps:
        since = 1 if step.first else since + 1
        found += [step] if since > WARMUP_STEPS else []
    return found or steps


def describe_sample(steps: Sequence[StepMetrics]) -> str:
    """Describe the steps that a measured time is the median of."""
    if len(after_warmup(steps)) == len(steps):
        return f"median of {len(steps)} steps, warm-up included"
    if any(step.first for step in steps):
        return f"median without the first {WARMUP_STEPS} steps of each start"
    return f"median after step {steps[0].step - 1 + WARMUP_STEPS}"


def describe_split(split_s: Mapping[str, float]) -> str:
    """Describe the parts of a step in words."""
    return ", ".join(f"{PARTS[name]} {format_seconds(split_s[name])}" for name in PARTS if name in split_s)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
