"""Reasons: why the first choice is first, and why another layout is not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from shapes import cluster, job, model

from launcher.cost.estimate import exposed, label
from launcher.cost.model import CostModel
from launcher.errors import InputError
from launcher.layout import LayoutRequest
from launcher.layout.job import Job
from launcher.planner.explain import close_calls, reasons, slower
from launcher.planner.preference import NOISE
from launcher.planner.result import SearchResult
from launcher.planner.search import search
from launcher.planner.why_not import parse, why_not

SHAPE = model(hidden=4096, layers=24, heads=32)
JOB = job(on=cluster(nodes=2, nodes_per_leaf=1), of=SHAPE, global_batch=64)


def searched(some_job: Job, **pins: object) -> tuple[SearchResult, CostModel]:
    cost = CostModel(some_job)
    return search(some_job, LayoutRequest(**pins), top=5, model=cost), cost


def why(some_job: Job, **pins: object) -> str:
    result, cost = searched(some_job, **pins)
    return "\n".join(reasons(result, cost)[0])


def test_an_estimate_says_where_its_time_and_memory_go_as_the_plan_of_it_does() -> None:
    found = search(job(on=cluster(nodes=2), of=model(), global_batch=64), LayoutRequest(), top=1)
    time, memory = found.best.estimate.why
    (why,) = reasons(found, CostModel(found.job))
    assert time.startswith("a step of ") and memory.startswith("memory is worst on stage ")
    assert {time, memory} < set(why)


def test_the_exposed_parts_of_a_step_add_up_to_it() -> None:
    for candidate in searched(JOB)[0].candidates:
        assert sum(exposed(candidate.estimate).values()) == pytest.approx(candidate.estimate.step_time_s, rel=1e-9)


def test_the_shares_shown_are_those_of_the_estimate() -> None:
    result, cost = searched(JOB, tp=2, pp=2)
    line = reasons(result, cost)[0][0]
    shares = {
        name.strip(): float(share) for name, share in re.findall(r"([a-z -]+) ([\d.]+)%", line.partition(" is ")[2])
    }
    estimate = result.best.estimate
    assert shares["compute"] == pytest.approx(100 * estimate.time["compute"] / estimate.step_time_s, abs=0.06)
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)


CROSSINGS = [
    (JOB, {"tp": 8, "pp": 2}, ["tensor-parallel groups of 8 cross NVLink", "pipeline-parallel groups of 2", "spine"]),
    (job(on=cluster(nodes=2), of=SHAPE), {"tp": 8, "pp": 2}, ["1 on each of 2 nodes", "under one leaf switch"]),
    (
        job(on=cluster(domains=(2, 2)), of=SHAPE),
        {"tp": 2, "pp": 2, "dp": 1, "cp": 1},
        ["pipeline-parallel groups of 2 cross PCIe"],
    ),
    (
        job(on=cluster(domains=(1, 1)), of=SHAPE),
        {"tp": 2, "tp_across_domains": True},
        ["tensor-parallel groups of 2 cross PCIe", "no NVLink between its members"],
    ),
    (
        job(on=cluster(nodes=2), of=SHAPE),
        {"tp": 16, "tp_across_domains": True},
        ["tensor-parallel groups of 16, 8 on each of 2 nodes"],
    ),
]


@pytest.mark.parametrize(("some_job", "pins", "words"), CROSSINGS)
def test_the_links_that_each_axis_crosses_are_reported(
    some_job: Job, pins: dict[str, object], words: list[str]
) -> None:
    reported = why(some_job, **pins)
    assert all(word in reported for word in words), reported


def test_a_mig_cluster_reports_how_many_jobs_run_side_by_side() -> None:
    slices = job(on=cluster(nodes=2, domains=(1,) * 7, memory_gib=10, mig_profile="1g.10gb"), of=model(layers=4))
    reported = why(slices)
    assert "14 such jobs side by side" in reported and "no peer-to-peer" in reported


def test_a_slower_layout_is_reported_by_how_much_and_where() -> None:
    cost = CostModel(JOB)
    fast = search(JOB, LayoutRequest(pp=1), top=1, model=cost).best.estimate
    slow = search(JOB, LayoutRequest(pp=8), top=1, model=cost).best.estimate
    text = slower(fast, slow)
    assert f"{slow.step_time_s / fast.step_time_s - 1:.1%} slower" in text
    assert "bubble +" in text
    assert "faster" in slower(slow, fast)
    assert slower(fast, fast) == "as fast, with as much memory"


def test_what_each_alternative_costs_is_what_its_estimate_says() -> None:
    result, cost = searched(JOB, recompute="selective", tp=8)
    reported = "\n".join(reasons(result, cost)[0])
    other = cost.estimate(replace(result.best.layout, recompute="none"))
    if other.fits and other.step_time_s > result.best.estimate.step_time_s * 1.0005:
        assert f"recompute=none would be {slower(result.best.estimate, other)}" in reported
    elif not other.fits:
        assert "recompute=none would not fit" in reported
    else:
        assert "recompute=none would" not in reported


def test_a_faster_split_of_the_layers_is_reported_with_what_it_gains() -> None:
    wide = job(on=cluster(domains=(4,)), of=replace(model(hidden=1024, layers=8), vocab=400_000), global_batch=64)
    result, cost = searched(wide, pp=4, tp=1, virtual_stages=1)
    (reported,) = [line for line in reasons(result, cost)[0] if "layer_split" in line]
    split = tuple(int(count) for count in reported.partition("[")[2].partition("]")[0].split(","))
    other = cost.estimate(replace(result.best.layout, layer_split=split))
    gain = 1 - other.step_time_s / result.best.estimate.step_time_s
    assert f"{gain:.1%} faster" in reported and gain > 0.01
    even, _ = searched(wide, pp=1)
    assert not any("layer_split" in line for line in reasons(even, cost)[0])


def test_every_candidate_has_reasons() -> None:
    result, cost = searched(JOB)
    reported = reasons(result, cost)
    assert len(reported) == len(result.candidates)
    assert all(lines and all(lines) for lines in reported)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tp_comm", "tensor-parallel comm"),
        ("bubble", "bubble"),
        ("dp_comm_hidden", "data-parallel comm hidden"),
        ("compute_s", "compute"),
    ],
)
def test_names_of_a_breakdown_are_reported_in_words(name: str, expected: str) -> None:
    assert label(name) == expected


def test_why_not_reports_an_illegal_layout_with_its_rule() -> None:
    result, cost = searched(JOB)
    assert "it is illegal: " in why_not(result, "tp=3", cost) and "32 heads" in why_not(result, "tp=3", cost)


def test_why_not_reports_a_layout_that_does_not_fit_with_the_stage_and_the_bytes() -> None:
    result, cost = searched(job(on=cluster(memory_gib=40), of=SHAPE, global_batch=64))
    answer = why_not(result, "tp=1,pp=1,zero_stage=0,recompute=none", cost)
    assert "does not fit" in answer and "on stage 0" in answer and "too much" in answer


def test_why_not_reports_a_slower_layout_by_how_much() -> None:
    result, cost = searched(JOB)
    answer = why_not(result, "pp=8", cost)
    best = search(JOB, LayoutRequest(pp=8), top=1).best
    assert best.layout.brief() in answer
    assert f"{best.estimate.step_time_s / result.best.estimate.step_time_s - 1:.1%} slower" in answer


def test_why_not_keeps_other_pinned_keys() -> None:
    result, cost = searched(JOB, tp=8, micro_batch=2)
    assert "mb2" in why_not(result, "pp=2", cost) and "tp8" in why_not(result, "pp=2", cost)


def test_why_not_knows_the_first_choice() -> None:
    result, cost = searched(JOB)
    layout = result.best.layout
    question = f"tp={layout.tp},pp={layout.pp},dp={layout.dp},micro_batch={layout.micro_batch}"
    assert "it is the first choice" in why_not(result, question, cost)


def test_a_question_is_parsed_into_keys_and_values() -> None:
    assert parse("tp=4, layout.pp=16,recompute=full,sequence_parallel=false") == {
        "tp": 4,
        "pp": 16,
        "recompute": "full",
        "sequence_parallel": False,
    }


WRONG = [
    ("tpp=4", ["'tpp=4'", "did you mean tp?"]),
    ("tp", ["'tp'", "why_not='tp=4,pp=16'"]),
    ("tp=four", ["'four' is not a value of tp"]),
    ("tp=4,sequence_parallel=maybe,zero_stag=1", ["'maybe'", "did you mean zero_stage?"]),
]


@pytest.mark.parametrize(("question", "words"), WRONG)
def test_a_question_that_is_not_understood_is_reported_whole(question: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse(question)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_lead_inside_the_noise_is_said_whichever_layout_is_estimated_as_faster() -> None:
    found = search(job(on=cluster(nodes=2), of=model(), global_batch=64), LayoutRequest(), top=10)
    best, second = found.candidates[:2]
    times = [best.estimate.step_time_s, second.estimate.step_time_s]
    (line,) = close_calls(found)
    assert abs(times[1] / times[0] - 1) < NOISE
    assert "estimates can tell apart" in line or "can tell apart: measure both" in line
    for ratio, words in ((1.01, "a lead of less than 2% is within"), (0.99, "is estimated 1.0% faster, which is less")):
        other = replace(second, estimate=replace(second.estimate, step_time_s=ratio * times[0]))
        (line,) = close_calls(replace(found, candidates=(best, other)))
        assert words in line
    far = replace(second, estimate=replace(second.estimate, step_time_s=1.05 * times[0]))
    assert list(close_calls(replace(found, candidates=(best, far)))) == []
