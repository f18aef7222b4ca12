"""The schedule of a step as a trace for ui.perfetto.dev or chrome://tracing: as predicted, and as ranks recorded it.

Trace Event Format (JSON object form): complete events (`ph` X, times in microseconds) and metadata events (`ph` M) with
names and order of tracks. The prediction is one process of the trace, each recorded step another; all begin at 0.
Perfetto takes thread 0 for the one that has the process's own number, so tracks are numbered from FIRST_TRACK. It drops
an event that overlaps the one before it, so begin and end are rounded to whole nanoseconds, and not the duration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from launcher.errors import InputError
from launcher.planner import Plan
from launcher.report.facts import Pipeline, pipeline
from launcher.run.spans import SPANS, RankSpans, Span

Event = dict[str, Any]
NS = 1e9
PREDICTED = 1  # its process; that of step N is N + 1
FIRST_TRACK = 100_000  # the thread of stage or rank 0: its last digits, shown after the name, are those of the rank
MAX_BOXES = 200_000  # of the prediction: about 30 MB


def trace(plan: Plan, recorded: Sequence[RankSpans]) -> str:
    """Return the whole trace of a plan and of the steps that were recorded (`read_spans`), if any.

    Raises InputError for a plan without an estimate and without recorded steps.
    """
    if not plan.estimate and not recorded:
        raise InputError(
            "nothing is known of the schedule: the job is a program without a model, and no step was recorded. "
            "Give it a model=, or run the recipe gpt"
        )
    drawn = pipeline(plan, max_boxes=MAX_BOXES) if plan.estimate else None
    events = [*(_predicted(plan, drawn) if drawn else ()), *_recorded(plan, recorded)]
    about = {
        "layout": plan.layout.brief(),
        "model": plan.job.model.name,
        "cluster": plan.job.cluster.name,
        "micro_batches_not_drawn": drawn.left_out if drawn else 0,
        "clocks": "tracks of one step share its first beginning; between hosts they are as far apart as their clocks",
    }
    document = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}
    return json.dumps(document, allow_nan=False, separators=(",", ":")) + "\n"


def _predicted(plan: Plan, drawn: Pipeline) -> Iterator[Event]:
    yield from _process(PREDICTED, f"predicted: {plan.layout.brief()}, {plan.estimate['step_time_s']:.4g} s a step")
    for stage in range(plan.layout.pp):
        yield from _track(PREDICTED, stage, f"pipeline stage {stage}")
    unit = drawn.unit_s
    for box in drawn.boxes:
        task = box.task
        span = Span(task.kind, box.start * unit, box.end * unit, task.stage, task.micro_batch)
        yield _complete(PREDICTED, box.rank, span)
    end = drawn.end * unit
    if drawn.after_s:
        after = Span("optimizer", end, end + drawn.after_s)
        yield from (
            _complete(PREDICTED, stage, after, name="gradients and optimizer") for stage in range(plan.layout.pp)
        )


def _recorded(plan: Plan, recorded: Sequence[RankSpans]) -> Iterator[Event]:
    for step, found in groupby(recorded, key=lambda one: one.step):
        ranks = list(found)
        first = min(one.began_at for one in ranks)
        longest = max(one.step_s for one in ranks)
        yield from _process(PREDICTED + step, f"measured: step {step}, {longest:.4g} s")
        for one in ranks:
            yield from _track(PREDICTED + step, one.rank, _rank_name(plan, one))
            late = one.began_at - first
            for span in sorted(one.spans, key=lambda s: (s.begin_s, -s.end_s)):
                yield _complete(PREDICTED + step, one.rank, span, late_s=late)


def _rank_name(plan: Plan, one: RankSpans) -> str:
    stage = f", pp {plan.grid.coordinate(one.rank)['pp']}" if one.rank < plan.grid.size else ""
    return f"rank {one.rank}{stage} on {one.host}"


def _process(pid: int, name: str) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "ts": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "ts": 0, "args": {"sort_index": pid}}


def _track(pid: int, number: int, name: str) -> Iterator[Event]:
    tid = FIRST_TRACK + number
    yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "ts": 0, "args": {"sort_index": number}}


def _complete(pid: int, number: int, span: Span, *, name: str = "", late_s: float = 0.0) -> Event:
    place = {"stage": span.stage, "micro_batch": span.micro_batch}
    which = "" if span.micro_batch is None else f" {span.micro_batch}"
    begin_ns, end_ns = (round((time + late_s) * NS) for time in (span.begin_s, span.end_s))
    return {
        "ph": "X",
        "name": name or f"{SPANS[span.kind]}{which}",
        "cat": span.kind,
        "ts": begin_ns / 1000,
        "dur": (end_ns - begin_ns) / 1000,
        "pid": pid,
        "tid": FIRST_TRACK + number,
        "args": {key: value for key, value in place.items() if value is not None},
    }
