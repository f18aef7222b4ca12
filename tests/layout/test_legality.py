"""Legality: all broken rules are reported at once, with what is allowed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import cluster, job, model

from launcher.layout import Layout, Link, Placement, RankGrid
from launcher.layout.job import Job
from launcher.layout.legality import broken_rules, divisors, problems, tensor_parallel_choices

LEGAL = Layout(tp=2, pp=2, dp=2, layer_split=(12, 12))

BROKEN = [
    # what differs from a legal layout, the rule, words of the message
    ({"tp": 0}, "degree below 1", ["layout.tp=0", "at least 1"]),
    ({"micro_batch": -1}, "degree below 1", ["layout.micro_batch=-1"]),
    ({"recompute": "some"}, "unknown choice", ["'some'", "none, selective, op, full"]),
    ({"zero_stage": 4}, "unknown choice", ["zero_stage=4", "0, 1, 2 or 3"]),
    ({"axis_order": "tp-dp"}, "unknown choice", ["'tp-dp'"]),
    ({"dp": 4}, "degrees do not fill the GPUs", ["= 16 ranks", "8 GPUs", "leave one auto"]),
    ({"tp": 3}, "tp does not divide the heads", ["layout.tp=3", "16 heads", "1, 2, 4, 8"]),
    ({"tp": 3}, "tp does not divide ffn_hidden", ["ffn_hidden=4096"]),
    ({"tp": 16, "pp": 1, "dp": 1}, "tp crosses NVSwitch domains", ["8 GPUs", "tp_across_domains=true"]),
    ({"sequence_parallel": True, "tp": 1}, "sequence_parallel needs tp", ["raise tp"]),
    ({"cp": 2048}, "sequence does not divide", ["seq_len=2048", "2 × cp = 4096"]),
    ({"virtual_stages": 2, "pp": 1}, "virtual stages need pp", ["raise pp"]),
    ({"pp": 32}, "more stages than layers", ["pp=32", "24"]),
    (
        {"virtual_stages": 5},
        "layers do not divide for interleaving",
        ["24 layers", "= 10", "1, 2, 3, 4, 5, 6, 8, 12, 13, 24"],
    ),
    ({"layer_split": (20, 5)}, "layer_split does not match", ["[20, 5]", "sum to 24"]),
    ({"schedule": "interleaved"}, "schedule and virtual stages disagree", ["virtual_stages > 1"]),
    ({"virtual_stages": 2}, "schedule and virtual stages disagree", ["schedule=1f1b", "virtual_stages=1"]),
    ({"micro_batch": 5}, "batch does not divide", ["global_batch=64", "2 × 5 = 10"]),
    (
        {"virtual_stages": 2, "schedule": "interleaved", "micro_batch": 32, "layer_split": (6, 6, 6, 6)},
        "micro-batches do not divide for interleaving",
        ["pp=2", "has 1 of them"],
    ),
    ({"ep": 2}, "ep needs experts", ["has none"]),
]


def test_a_legal_layout_breaks_no_rule() -> None:
    assert problems(job(), LEGAL) == []


@pytest.mark.parametrize(("change", "rule", "words"), BROKEN, ids=[f"{rule}-{change}" for change, rule, _ in BROKEN])
def test_a_broken_rule_is_reported_with_what_was_found_and_what_is_allowed(
    change: dict[str, object], rule: str, words: list[str]
) -> None:
    found = [p.message for p in broken_rules(job(), replace(LEGAL, **change)) if p.rule == rule]
    assert len(found) == 1
    assert all(word in found[0] for word in words), found[0]


def test_all_problems_are_reported_at_once() -> None:
    layout = Layout(tp=3, pp=32, dp=5, micro_batch=7, ep=2, cp=3, sequence_parallel=True)
    rules = {problem.rule for problem in broken_rules(job(), layout)}
    assert rules >= {
        "degrees do not fill the GPUs",
        "tp does not divide the heads",
        "tp does not divide ffn_hidden",
        "sequence does not divide",
        "more stages than layers",
        "batch does not divide",
        "ep needs experts",
    }


def test_experts_must_divide_and_be_cut_out_of_dp() -> None:
    experts = job(of=model(num_experts=6))
    found = problems(experts, Layout(tp=2, pp=2, dp=2, ep=4, layer_split=(12, 12)))
    assert any("6 experts" in message and "1, 2, 3, 6" in message for message in found)
    assert any("must divide dp=2" in message for message in found)


def test_the_advice_for_tp_obeys_every_rule_on_tp() -> None:
    odd = job(of=model(hidden=24 * 64, heads=24), on=cluster(domains=(4, 4)))
    (message,) = [m for m in problems(odd, Layout(tp=8, pp=1, dp=1)) if "NVSwitch" in m]
    assert "choose one of 1, 2, 4," in message


def test_tp_may_leave_the_domain_when_that_is_allowed() -> None:
    two_nodes = job(on=cluster(nodes=2))
    layout = Layout(tp=16, pp=1, dp=1)
    assert [p.rule for p in broken_rules(two_nodes, layout)] == ["tp crosses NVSwitch domains"]
    assert problems(two_nodes, replace(layout, tp_across_domains=True)) == []


def test_an_axis_order_that_spreads_tp_over_nodes_is_refused() -> None:
    two_nodes = job(on=cluster(nodes=2))
    layout = Layout(tp=2, pp=1, dp=8, axis_order="dp-cp-tp-pp")
    (message,) = problems(two_nodes, layout)
    assert "dp-cp-tp-pp" in message and "put tp first" in message
    assert problems(two_nodes, replace(layout, axis_order="tp-cp-dp-pp")) == []


def test_mig_slices_take_one_rank_each() -> None:
    slices = job(on=cluster(domains=(1,) * 7, memory_gib=10, mig_profile="1g.10gb"))
    assert problems(slices, Layout(tp=1, pp=1, dp=1)) == []
    for layout in (Layout(tp=1, pp=1, dp=7), Layout(tp=7, pp=1, dp=1)):
        assert any("no peer-to-peer" in message for message in problems(slices, layout))


def test_pipeline_with_zero_2_is_refused_for_deepspeed() -> None:
    deepspeed = replace(job(), training=replace(job().training, engine="deepspeed"))
    assert any("ZeRO-2" in message for message in problems(deepspeed, replace(LEGAL, zero_stage=2)))


@st.composite
def jobs_and_layouts(draw: st.DrawFn) -> tuple[Job, Layout]:
    small = st.integers(0, 6)
    layout = Layout(
        tp=draw(small),
        pp=draw(small),
        dp=draw(small),
        cp=draw(small),
        ep=draw(small),
        virtual_stages=draw(small),
        micro_batch=draw(small),
        zero_stage=draw(st.integers(0, 4)),
        sequence_parallel=draw(st.booleans()),
        axis_order="-".join(draw(st.permutations(["tp", "cp", "dp", "pp"]))),
        schedule=draw(st.sampled_from(["1f1b", "interleaved"])),
    )
    fabric = cluster(nodes=draw(st.integers(1, 3)), domains=draw(st.sampled_from([(4,), (2, 2), (1, 1), (3, 1)])))
    shape = model(layers=draw(st.integers(1, 12)), heads=draw(st.sampled_from([4, 6, 16])))
    return job(on=fabric, of=shape, global_batch=draw(st.integers(1, 24))), layout


@given(jobs_and_layouts())
def test_judging_never_fails_and_what_passes_keeps_the_laws(case: tuple[Job, Layout]) -> None:
    some_job, layout = case
    found = broken_rules(some_job, layout)
    assert all(problem.rule and problem.message for problem in found)
    if found:
        return
    assert layout.world_size == some_job.cluster.max_ranks
    assert some_job.model.heads % layout.tp == 0
    assert layout.num_micro_batches(some_job.training.global_batch) * layout.dp * layout.micro_batch == (
        some_job.training.global_batch
    )
    assert Placement(some_job.cluster, RankGrid.of(layout)).axis_link("tp") <= Link.NVLINK


@given(st.integers(1, 5000))
def test_divisors_are_all_of_them_in_order(number: int) -> None:
    assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]


def test_tensor_parallel_choices_stop_at_the_domain() -> None:
    assert tensor_parallel_choices(job(on=cluster(nodes=2)), across_domains=False) == [1, 2, 4, 8]
    assert tensor_parallel_choices(job(on=cluster(nodes=2)), across_domains=True) == [1, 2, 4, 8, 16]


def test_grouped_heads_are_reported_only_where_they_differ_from_the_heads() -> None:
    grouped = job(of=replace(model(heads=24, hidden=24 * 64), kv_heads=6))
    rules = {p.rule for p in broken_rules(grouped, Layout(tp=4, pp=1, dp=2, layer_split=(24,)))}
    assert rules == {"tp and the key-value heads do not divide"}
    same = {p.rule for p in broken_rules(job(), Layout(tp=3, pp=1, dp=2))}
    assert "tp and the key-value heads do not divide" not in same
