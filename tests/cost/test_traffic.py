"""The bytes of every axis are counted once: estimates price them, and the placement of nodes weighs links by them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
from shapes import cluster, job, model

from launcher.cost import CostModel, collectives
from launcher.cost.constants import DEFAULT
from launcher.cost.network import Fabric, Group
from launcher.cost.parameters import RankParameters
from launcher.cost.traffic import (
    SEND,
    SEND_BACK,
    Message,
    MessageRules,
    gradient_messages,
    head_messages,
    layer_messages,
    rank_bytes,
    rules_of,
)
from launcher.layout import Layout
from launcher.planner import Plan
from launcher.slurm.node_grid import groups
from launcher.slurm.traffic import node_traffic, rank_edges, stage_messages

LAYOUTS = [
    Layout(tp=1, pp=1, dp=32),
    Layout(tp=1, pp=1, dp=32, zero_stage=1),
    Layout(tp=1, pp=1, dp=32, zero_stage=2),
    Layout(tp=1, pp=1, dp=32, zero_stage=3),
    Layout(tp=8, pp=1, dp=4),
    Layout(tp=8, pp=1, dp=4, sequence_parallel=True),
    Layout(tp=2, pp=1, dp=8, cp=2, zero_stage=3),
    Layout(tp=2, pp=4, dp=2, cp=2, axis_order="tp-dp-cp-pp"),
    Layout(tp=4, pp=4, dp=2, recompute="full"),
    Layout(tp=4, pp=4, dp=2, sequence_parallel=True, recompute="full", zero_stage=1),
    Layout(tp=2, pp=4, dp=4, virtual_stages=3, schedule="interleaved"),
    Layout(tp=2, pp=4, dp=4, virtual_stages=3, schedule="interleaved", sequence_parallel=True, zero_stage=3),
    Layout(tp=1, pp=4, dp=8, zero_stage=2, axis_order="pp-tp-cp-dp"),
    Layout(tp=2, pp=4, dp=4, schedule="zb_h1"),
    Layout(tp=2, pp=1, dp=16, ep=4, zero_stage=1),
    Layout(tp=1, pp=2, dp=16, ep=16, zero_stage=3),
    Layout(tp=2, pp=2, dp=4, cp=2, ep=2, sequence_parallel=True),
    Layout(tp=1, pp=1, dp=32, zero_stage=3, shard_group=8),
    Layout(tp=2, pp=2, dp=8, zero_stage=1, shard_group=2),
    Layout(tp=1, pp=1, dp=8, cp=4, zero_stage=3, shard_group=2),
    Layout(tp=1, pp=1, dp=16, cp=2, zero_stage=2, shard_group=8),
    Layout(tp=1, pp=1, dp=32, ep=4, zero_stage=3, shard_group=8),
    Layout(tp=1, pp=1, dp=32, ep=8, zero_stage=1, shard_group=4),
]
BYTES_ARE_SECONDS = replace(
    DEFAULT, collective_slowdown=1.0, late_rank_s=0.0, tp_overlap_cost=1.0, overlap_slowdown=0.0,
)  # fmt: skip


def plan_of(layout: Layout) -> Plan:
    what = model(num_experts=16 if layout.ep > 1 else 0)
    return Plan(job(on=cluster(nodes=4), of=what, global_batch=128), layout, estimate={}, why=())


def name(layout: Layout) -> str:
    return f"{layout.brief()} {layout.schedule} {layout.axis_order}"


@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
@pytest.mark.parametrize("rules", [None, MessageRules(False, False, False, False, True, False, True, True, False)])
def test_the_edges_that_placement_weighs_sum_to_the_bytes_that_ranks_send(
    layout: Layout, rules: MessageRules | None
) -> None:
    plan = plan_of(layout)
    sent = defaultdict(float)
    for a, _, num_bytes in rank_edges(plan, rules):
        sent[a] += num_bytes
    for stage_index, messages in enumerate(stage_messages(plan, rules)):
        expected = sum(rank_bytes(messages).values())
        ranks = [rank for group in groups(plan.layout, stage_index, "tp") for rank in group]
        assert len(ranks) == layout.world_size // layout.pp
        assert {rank: sent[rank] for rank in ranks} == pytest.approx(dict.fromkeys(ranks, expected))


@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_the_groups_of_an_axis_are_those_of_the_rank_grid(layout: Layout) -> None:
    plan = plan_of(layout)
    for axis in ("tp", "cp", "ep"):
        found = sorted(group for stage_index in range(layout.pp) for group in groups(plan.layout, stage_index, axis))
        assert found == sorted(plan.grid.groups(axis))
    for stage_index in range(layout.pp):
        replicas, experts = (list(groups(plan.layout, stage_index, axis)) for axis in ("dp", "edp"))
        assert {len(group) for group in replicas} == {layout.dp * layout.cp}
        assert {len(group) for group in experts} == {layout.dp * layout.cp // layout.ep}
        members = sorted(rank for group in experts for rank in group)
        assert members == sorted(rank for group in replicas for rank in group)
        for group in experts:  # the same experts: the same place among the ep neighbours along dp
            assert len({plan.grid.coordinate(rank)["dp"] % layout.ep for rank in group}) == 1


@pytest.mark.parametrize("layout", [each for each in LAYOUTS if each.pp in (1, 4)], ids=name)
def test_the_estimate_prices_the_very_bytes_that_a_rank_sends(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a second for a byte the step's communication is what the busiest rank sends."""

    def byte_s(fabric: Fabric, group: Group, message: Message) -> float:
        assert group.ranks == message.ranks
        return message._replace(times=1.0).sent_bytes

    monkeypatch.setattr(collectives, "message_s", byte_s)
    split = (3, 9, 9, 3) if layout.pp > 1 and layout.virtual_stages == 1 else ()
    plan = plan_of(replace(layout, layer_split=split))
    small = replace(plan.job.model, vocab=2048, tied_embeddings=False, positions="rotary")
    plan = replace(plan, job=replace(plan.job, model=small))
    time = CostModel(plan.job, BYTES_ARE_SECONDS).estimate(plan.layout).time
    priced = sum(time[f"{axis}_comm"] for axis in ("tp", "cp", "ep", "pp", "dp")) + time["dp_comm_hidden"]
    busiest = max(stage_messages(plan), key=lambda messages: sum(rank_bytes(messages).values()))
    sent = sum(rank_bytes(busiest).values())
    if layout.virtual_stages > 1:  # the fullest rank is priced as one between the ends
        assert priced >= sent * (1 - 1e-9)
    else:
        assert priced == pytest.approx(sent)


def test_every_collective_has_a_price_and_a_number_of_passes() -> None:
    seen = {m.collective for layout in LAYOUTS for messages in stage_messages(plan_of(layout)) for m in messages}
    assert seen == set(collectives.SECONDS) >= {SEND, SEND_BACK}


def test_sharded_weights_count_for_every_micro_batch() -> None:
    """ZeRO-3 over 32 ranks, one micro-batch of 4 each: two gathers of the weights, and gradients reduced in fp32."""
    plan = plan_of(Layout(tp=1, pp=1, dp=32, micro_batch=4, zero_stage=3))
    parameters, padding = plan.job.model.params, 31 / 32
    per_rank = rank_bytes(stage_messages(plan)[0])["dp"]
    assert per_rank == pytest.approx(padding * parameters * (2 * 2 + 4), rel=0.01)
    twice = plan_of(Layout(tp=1, pp=1, dp=32, micro_batch=2, zero_stage=3))
    assert rank_bytes(stage_messages(twice)[0])["dp"] == pytest.approx(2 * per_rank)
    assert node_traffic(twice).edges[0, 1] == pytest.approx(2 * node_traffic(plan).edges[0, 1])


@pytest.mark.parametrize(
    ("stack", "sequence_parallel", "forward", "backward"),
    [
        # all-reduces; with sequence parallelism all-gathers and reduce-scatters
        ("megatron_lm", False, (2,), (2,)),
        ("scaling", False, (2,), (3,)),  # gate and up projection each sum the gradient of their input
        ("megatron_lm", True, (2, 2), (4, 2)),
        ("scaling", True, (2, 2), (2, 2)),  # one gather for both, which is kept
        ("internevo", True, (3, 2), (5, 3)),  # each gathers, and gathers again
        ("torchtitan", True, (2, 2), (2, 2)),
    ],
)
def test_gate_and_up_projections_share_their_collectives_or_do_not(
    stack: str, sequence_parallel: bool, forward: tuple[int, ...], backward: tuple[int, ...]
) -> None:
    asked = job(of=replace(model(), gated_mlp=True), stack=stack)
    layout = Layout(tp=4, pp=1, dp=2, sequence_parallel=sequence_parallel)
    found = layer_messages(asked, layout, rules_of(asked, layout))
    order = ["all_reduce", "all_gather", "reduce_scatter"]

    def times(messages: tuple[Message, ...]) -> tuple[float, ...]:
        return tuple(m.times for m in sorted(messages, key=lambda m: order.index(m.collective)))

    assert (times(found.forward), times(found.backward)) == (forward, backward)
    plain = replace(asked, model=model())
    assert times(layer_messages(plain, layout, rules_of(plain, layout)).forward) == (2,) * len(forward)


@pytest.mark.parametrize(
    ("stack", "year", "zero_stage", "collective", "bytes_each"),
    [
        ("megatron_lm", 2025, 1, "reduce_scatter", 4),
        ("scaling", 2024, 1, "all_reduce", 4),  # widened from bf16, whole on every rank
        ("deepspeed", 2023, 2, "reduce_scatter", 2),
        ("deepspeed", 2024, 2, "all_reduce", 2),
        ("deepspeed", 2024, 3, "reduce_scatter", 2),
        ("fsdp", 2024, 2, "reduce_scatter", 2),
    ],
)
def test_gradients_are_reduced_as_the_software_does_it(
    stack: str, year: int, zero_stage: int, collective: str, bytes_each: int
) -> None:
    asked, layout = job(stack=stack, year=year), Layout(tp=1, pp=1, dp=8, micro_batch=8, zero_stage=zero_stage)
    messages = gradient_messages(asked, layout, RankParameters(1e9), rules_of(asked, layout))
    (reduced,) = [message for message in messages.backward if message.collective != "all_gather"]
    assert (reduced.collective, reduced.num_bytes) == (collective, bytes_each * 1e9)


def test_gradients_that_are_widened_for_their_sums_cost_copies_and_twice_the_bytes() -> None:
    on, layout = cluster(nodes=8), Layout(tp=1, pp=1, dp=64, zero_stage=1)
    plain = job(on=on, of=model(hidden=4096), stack="scaling", widens_sums=False)
    widened = job(on=on, of=model(hidden=4096), stack="scaling")
    less, more = (CostModel(each).estimate(layout).time for each in (plain, widened))
    assert more["dp_comm"] - less["dp_comm"] == pytest.approx(
        2 / 3 * less["dp_comm"], rel=0.1
    )  # 4 + 1 passes over 2 + 1
    copies = 24 * widened.model.params / (0.76 * on.node.gpu.hbm_bytes_per_s)
    assert more["optimizer"] - less["optimizer"] == pytest.approx(copies, rel=0.05)


def test_logits_that_are_not_divided_are_gathered() -> None:
    asked, layout = job(stack="scaling"), Layout(tp=4, pp=1, dp=2)
    (gathered,) = head_messages(asked, layout).forward
    assert (gathered.collective, gathered.num_bytes) == ("all_gather", 2048 * 51200 * 2)
    divided = head_messages(job(stack="megatron_lm"), layout).forward
    assert [m.num_bytes for m in divided] == [4 * 2048]
    heads = {name: CostModel(job(stack=name)).end_costs(layout)[1].total_s for name in ("scaling", "megatron_lm")}
    assert heads["scaling"] > 1.5 * heads["megatron_lm"]  # and the loss works on all of them on every rank


def test_gradients_of_experts_are_summed_over_the_ranks_that_share_them() -> None:
    dense = rank_bytes(stage_messages(plan_of(Layout(tp=1, pp=1, dp=32)))[0])
    experts = rank_bytes(stage_messages(plan_of(Layout(tp=1, pp=1, dp=32, ep=4)))[0])
    mlp = 24 * 4 * plan_of(Layout(tp=1, pp=1, dp=32)).job.model.mlp_params * 4  # 16 experts over 4 ranks, fp32
    assert set(dense) == {"dp"}
    assert set(experts) == {"dp", "edp", "ep"}
    assert experts["edp"] == pytest.approx(2 * 7 / 8 * mlp)


def test_a_shard_group_gathers_within_and_sums_its_shards_across() -> None:
    everywhere = rank_bytes(stage_messages(plan_of(Layout(tp=1, pp=1, dp=32, zero_stage=3)))[0])
    grouped = rank_bytes(stage_messages(plan_of(Layout(tp=1, pp=1, dp=32, zero_stage=3, shard_group=8)))[0])
    assert set(everywhere) == {"dp"} and set(grouped) == {"sdp", "rdp"}
    assert grouped["sdp"] == pytest.approx(everywhere["dp"] * (7 / 8) / (31 / 32))
    assert grouped["rdp"] < 0.2 * grouped["sdp"]


def test_ranks_of_a_shard_group_are_neighbours_and_replicas_sit_across() -> None:
    plan = plan_of(Layout(tp=2, pp=1, dp=16, zero_stage=3, shard_group=4))
    assert next(groups(plan.layout, 0, "sdp")) == (0, 2, 4, 6)
    assert next(groups(plan.layout, 0, "rdp")) == (0, 8, 16, 24)
    for axis in ("sdp", "rdp"):
        assert sorted(rank for group in groups(plan.layout, 0, axis) for rank in group) == list(range(32))


@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_nodes_exchange_what_their_ranks_do(layout: Layout) -> None:
    plan = plan_of(layout)
    expected: dict[tuple[int, int], float] = defaultdict(float)
    for a, b, num_bytes in rank_edges(plan):
        if a // 8 != b // 8:
            expected[min(a // 8, b // 8), max(a // 8, b // 8)] += num_bytes
    assert node_traffic(plan).edges == pytest.approx(dict(expected))
