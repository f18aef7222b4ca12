"""Near-duplicates of a plan are named with it, and the table says how sure an estimate is."""

from __future__ import annotations

import pytest
from shapes import cluster, job, model

from launcher.layout import LayoutRequest
from launcher.planner.distinct import ALIKE, distinct
from launcher.planner.search import search
from launcher.report.terminal import plans_table

SOME_JOB = job(on=cluster(nodes=2), of=model(), global_batch=64)
FOUND = search(SOME_JOB, LayoutRequest(), top=60)


def test_every_plan_is_shown_or_named_with_one_that_is_as_fast() -> None:
    plans = distinct(FOUND.candidates, top=60)
    named = sum(len(words.split(" ", 1)[1].split(", ")) for plan in plans for words in plan.also)
    assert plans[0].candidate == FOUND.best
    assert len(plans) + named == len(FOUND.candidates)
    assert named > 0 and len(distinct(FOUND.candidates, top=5)) == 5


def test_plans_that_share_the_ranks_out_in_another_way_are_never_folded() -> None:
    degrees = {(c.layout.tp, c.layout.pp, c.layout.dp, c.layout.micro_batch) for c in FOUND.candidates}
    shown = {(p.candidate.layout.tp, p.candidate.layout.pp, p.candidate.layout.dp, p.candidate.layout.micro_batch)
             for p in distinct(FOUND.candidates, top=60)}  # fmt: skip
    assert shown == degrees
    assert ALIKE < 0.02


def test_the_table_shows_the_interval_and_the_chance_to_fit() -> None:
    best = FOUND.best.estimate
    line = plans_table(FOUND, top=3)[3]
    faster, slower = (end / best.step_time_s for end in best.step_time_interval_s)
    shown = line[line.index("(") + 1 : line.index(")")].split("–")
    time = float(line[: line.index("(")].split()[-2])
    assert [float(end) / time for end in shown] == pytest.approx([faster, slower], rel=0.01)
    assert f"{best.fit_probability:.0%}" in line.split()
