"""Bounds never exceed the estimate: the search skips layouts on their word."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import cluster, job, model

from launcher.cost import bounds
from launcher.cost.model import CostModel
from launcher.layout import Layout, LayoutRequest
from launcher.layout.job import Job
from launcher.layout.legality import problems
from launcher.planner.lower_bounds import Floors
from launcher.planner.space import Degrees, Passes, Schedule, Sharding, Space

ROUNDING = 1 + 1e-9


@st.composite
def legal(draw: st.DrawFn) -> tuple[Job, Layout]:
    """A job of odd sizes and one of its legal layouts."""
    domains = draw(st.sampled_from([(1,), (2,), (4,), (8,), (3,), (6,), (2, 2), (4, 4), (3, 1)]))
    fabric = cluster(nodes=draw(st.integers(1, 6)), domains=domains, nodes_per_leaf=draw(st.integers(0, 3)))
    fabric = replace(fabric, oversubscription=draw(st.sampled_from([1.0, 2.0])))
    heads = draw(st.sampled_from([8, 12, 24]))
    shape = model(
        hidden=heads * draw(st.sampled_from([32, 128])),
        layers=draw(st.integers(1, 16)),
        heads=heads,
        seq_len=draw(st.sampled_from([96, 512, 4096])),
        num_experts=draw(st.sampled_from([0, 0, 4])),
    )
    some_job = job(on=fabric, of=shape, global_batch=draw(st.sampled_from([4, 6, 24, 96, 360])))
    attention = draw(st.sampled_from(["math", "fused", "flash1", "flash"]))
    some_job = replace(some_job, training=replace(some_job.training, attention=attention))
    across = draw(st.booleans())
    space = Space(
        some_job, LayoutRequest(tp_across_domains=across, schedule=draw(st.sampled_from([None, "gpipe", "zb_h1"])))
    )
    degrees = draw(st.sampled_from(list(space.degrees())))
    micro_batch = draw(st.sampled_from(list(space.micro_batches(degrees))))
    passes = draw(st.sampled_from(space.passes(degrees, micro_batch)))
    schedule = draw(st.sampled_from(space.schedules(degrees, micro_batch)))
    sharding = draw(st.sampled_from(list(space.shardings(degrees))))
    order = draw(st.sampled_from(list(space.axis_orders(degrees))))
    return some_job, space.layout(degrees, passes, schedule, sharding=sharding, axis_order=order)


def parts_of(layout: Layout) -> tuple[Degrees, Passes, Schedule]:
    return (
        Degrees(layout.tp, layout.cp, layout.pp, layout.dp, layout.ep),
        Passes(layout.micro_batch, layout.recompute, layout.sequence_parallel),
        Schedule(layout.virtual_stages, layout.schedule),
    )


@given(legal())
@settings(max_examples=400, deadline=None)
def test_the_time_bound_never_exceeds_the_estimate(case: tuple[Job, Layout]) -> None:
    some_job, layout = case
    if problems(some_job, layout):
        return
    cost = CostModel(some_job)
    degrees, passes, schedule = parts_of(layout)
    floors = Floors(Space(some_job, LayoutRequest(tp_across_domains=layout.tp_across_domains)), cost)
    floor, order = floors.passes(degrees, passes), layout.axis_order
    time = cost.estimate(layout).step_time_s
    assert floors.compute(degrees, layout.micro_batch).step_time_s(schedule) <= floor.step_time_s(schedule) * ROUNDING
    assert floor.step_time_s(schedule) <= time * ROUNDING
    sends = floors.sends_s(degrees, passes, schedule, order)
    after = floors.after_s(
        degrees, floor, sharding=Sharding(layout.zero_stage, layout.shard_group), order=order, sends_s=sends
    )
    assert floor.step_time_s(schedule, sends_s=sends) + after <= time * ROUNDING


@given(legal())
@settings(max_examples=400, deadline=None)
def test_the_memory_bound_never_exceeds_the_estimate(case: tuple[Job, Layout]) -> None:
    some_job, layout = case
    if problems(some_job, layout):
        return
    cost = CostModel(some_job)
    degrees, passes, schedule = parts_of(layout)
    floors = Floors(Space(some_job, LayoutRequest(tp_across_domains=layout.tp_across_domains)), cost)
    way = next(way for way in floors.ways(degrees, layout.micro_batch) if way.passes == passes)
    activations = floors.activation_bytes(degrees, way, floors.held(degrees, layout.micro_batch, schedule))
    states = bounds.state_bytes_of_first_rank(cost, layout)
    assert activations + states <= cost.memory(layout).total_bytes * ROUNDING


@given(legal())
@settings(max_examples=200, deadline=None)
def test_more_recomputation_never_shortens_the_bound_and_more_virtual_stages_never_lengthen_it(
    case: tuple[Job, Layout],
) -> None:
    some_job, layout = case
    degrees, passes, _ = parts_of(layout)
    floors = Floors(Space(some_job, LayoutRequest(tp_across_domains=layout.tp_across_domains)), CostModel(some_job))
    for modes in (("none", "selective", "full"), ("none", "op", "full")):
        busiest = [floors.passes(degrees, passes._replace(recompute=mode)).busiest_s for mode in modes]
        assert busiest == sorted(busiest)
    floor = floors.passes(degrees, passes)
    seconds = [floor.step_time_s(Schedule(v, "interleaved")) for v in (1, 2, 3, 4)]
    assert seconds == sorted(seconds, reverse=True)
    held = [
        floors.held(degrees, layout.micro_batch, Schedule(v, "interleaved" if v > 1 else "1f1b")) for v in (1, 2, 3, 4)
    ]
    assert held[0] == min(held)


def test_the_bound_is_no_trivial_one() -> None:
    """On a large job the bound of compute alone is most of the time of a good plan."""
    large = job(on=cluster(nodes=8), of=model(hidden=8192, layers=48, heads=64), global_batch=512)
    cost = CostModel(large)
    layout = Layout(tp=8, pp=4, dp=2, micro_batch=2, sequence_parallel=True, layer_split=(12,) * 4)
    degrees, passes, schedule = parts_of(layout)
    floor = Floors(Space(large, LayoutRequest()), cost).passes(degrees, passes)
    assert floor.step_time_s(schedule) > 0.8 * cost.estimate(layout).step_time_s
    assert floor.busiest_s == pytest.approx(bounds.busiest_s(floor.time, floor.stages))
