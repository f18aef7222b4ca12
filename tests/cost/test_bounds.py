"""Bounds never exceed the estimate: the search skips layouts on their word."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shapes import cluster, job, model

from launcher.cost import bounds
from launcher.cost.model import CostModel
from launcher.layout import Layout, LayoutRequest
from launcher.layout.job import Job
from launcher.layout.legality import problems
from launcher.planner.lower_bounds import LowerBounds
from launcher.planner.space import Degrees, PassConfig, Schedule, Sharding, Space
from launcher.units import GIB

ROUNDING = 1 + 1e-9


@st.composite
def legal(draw: st.DrawFn) -> tuple[Job, Layout]:
    """A job of odd sizes and one of its legal layouts."""
    domains = draw(st.sampled_from([(1,), (2,), (4,), (8,), (3,), (6,), (2, 2), (4, 4), (3, 1)]))
    fabric = cluster(nodes=draw(st.integers(1, 6)), domains=domains, nodes_per_leaf=draw(st.integers(0, 3)))
    fabric = replace(fabric, oversubscription=draw(st.sampled_from([1.0, 2.0])))
    host_bytes = draw(st.sampled_from([0, GIB, 512 * GIB]))
    fabric = replace(fabric, node=replace(fabric.node, host_memory_bytes=host_bytes))
    heads = draw(st.sampled_from([8, 12, 24]))
    shape = model(
        hidden=heads * draw(st.sampled_from([32, 128])),
        layers=draw(st.integers(1, 16)),
        heads=heads,
        seq_len=draw(st.sampled_from([96, 512, 4096])),
        num_experts=draw(st.sampled_from([0, 0, 4])),
    )
    some_job = job(
        on=fabric,
        of=shape,
        global_batch=draw(st.sampled_from([4, 6, 24, 96, 360])),
        stack=draw(st.sampled_from(["megatron_lm", "launcher", "torchtitan"])),
    )
    attention = draw(st.sampled_from(["math", "fused", "flash1", "flash"]))
    some_job = replace(some_job, training=replace(some_job.training, attention=attention))
    across = draw(st.booleans())
    space = Space(
        some_job, LayoutRequest(tp_across_domains=across, schedule=draw(st.sampled_from([None, "gpipe", "zb_h1"])))
    )
    degrees = draw(st.sampled_from(list(space.degrees())))
    degrees = draw(st.sampled_from(list(space.families(degrees))))
    micro_batch = draw(st.sampled_from(list(space.micro_batches(degrees))))
    pass_config = draw(st.sampled_from(space.pass_configs(degrees, micro_batch)))
    schedules = space.schedules(degrees, micro_batch)
    assume(schedules)
    schedule = draw(st.sampled_from(schedules))
    sharding = draw(st.sampled_from(list(space.shardings(degrees))))
    order = draw(st.sampled_from(list(space.axis_orders(degrees))))
    return some_job, space.layout(degrees, pass_config, schedule, sharding=sharding, axis_order=order)


def sharding_of(layout: Layout) -> Sharding:
    return Sharding(layout.zero_stage, layout.shard_group, layout.offload_optimizer)


def parts_of(layout: Layout) -> tuple[Degrees, PassConfig, Schedule]:
    return (
        Degrees(
            *(layout.tp, layout.cp, layout.pp, layout.dp, layout.ep),
            splits_backward=layout.schedule == "zb_h1",
            short_ends=layout.virtual_stages if layout.virtual_stages > 1 and len(set(layout.layer_split)) > 1 else 0,
        ),
        PassConfig(layout.micro_batch, layout.recompute, layout.sequence_parallel, layout.recompute_fraction),
        Schedule(layout.virtual_stages, layout.schedule),
    )


@given(legal())
@settings(max_examples=400, deadline=None)
def test_the_time_bound_never_exceeds_the_estimate(case: tuple[Job, Layout]) -> None:
    some_job, layout = case
    if problems(some_job, layout):
        return
    cost = CostModel(some_job)
    degrees, pass_config, schedule = parts_of(layout)
    lower_bounds = LowerBounds(Space(some_job, LayoutRequest(tp_across_domains=layout.tp_across_domains)), cost)
    bound, order = lower_bounds.pass_bound(degrees, pass_config), layout.axis_order
    time = cost.estimate(layout).step_time_s
    assert (
        lower_bounds.compute(degrees, layout.micro_batch).step_time_s(schedule)
        <= bound.step_time_s(schedule) * ROUNDING
    )
    assert bound.step_time_s(schedule) <= time * ROUNDING
    sends = lower_bounds.sends_s(degrees, pass_config, schedule, order)
    sharding = sharding_of(layout)
    after = lower_bounds.after_s(degrees, bound, sharding=sharding, order=order, sends_s=sends)
    assert bound.step_time_s(schedule, sends_s=sends) + after <= time * ROUNDING


@given(legal())
@settings(max_examples=400, deadline=None)
def test_the_memory_bound_never_exceeds_the_estimate(case: tuple[Job, Layout]) -> None:
    some_job, layout = case
    if problems(some_job, layout):
        return
    cost = CostModel(some_job)
    degrees, pass_config, schedule = parts_of(layout)
    lower_bounds = LowerBounds(Space(some_job, LayoutRequest(tp_across_domains=layout.tp_across_domains)), cost)
    option = next(
        option for option in lower_bounds.pass_options(degrees, layout.micro_batch) if option.pass_config == pass_config
    )
    activations = lower_bounds.activation_bytes(
        degrees, option, lower_bounds.held(degrees, layout.micro_batch, schedule)
    )
    states, memory = bounds.state_bytes_of_first_rank(cost, layout), cost.memory(layout)
    assert activations + states <= memory.total_bytes * ROUNDING
    place = lower_bounds.space.shardings(degrees).index(sharding_of(layout))
    assert lower_bounds.states(degrees)[place] == (states if memory.fits_host else inf)


@given(legal())
@settings(max_examples=200, deadline=None)
def test_more_recomputation_never_shortens_the_bound_and_more_virtual_stages_never_lengthen_it(
    case: tuple[Job, Layout],
) -> None:
    some_job, layout = case
    degrees, pass_config, _ = parts_of(layout)
    lower_bounds = LowerBounds(
        Space(some_job, LayoutRequest(tp_across_domains=layout.tp_across_domains)), CostModel(some_job)
    )
    rising = (pass_config._replace(recompute=mode) for mode in some_job.stack.recompute_modes)
    busiest = [lower_bounds.pass_bound(degrees, each).busiest_s for each in rising]
    assert busiest == sorted(busiest)
    bound = lower_bounds.pass_bound(degrees, pass_config)
    seconds = [bound.step_time_s(Schedule(v, "interleaved")) for v in (1, 2, 3, 4)]
    assert seconds == sorted(seconds, reverse=True)
    held = [
        lower_bounds.held(degrees, layout.micro_batch, Schedule(v, "interleaved" if v > 1 else "1f1b"))
        for v in (1, 2, 3, 4)
    ]
    assert held[0] == min(held)


def test_the_bound_is_no_trivial_one() -> None:
    """On a large job the bound of compute alone is most of the time of a good plan."""
    large = job(on=cluster(nodes=8), of=model(hidden=8192, layers=48, heads=64), global_batch=512)
    cost = CostModel(large)
    layout = Layout(tp=8, pp=4, dp=2, micro_batch=2, sequence_parallel=True, layer_split=(12,) * 4)
    degrees, pass_config, schedule = parts_of(layout)
    bound = LowerBounds(Space(large, LayoutRequest()), cost).pass_bound(degrees, pass_config)
    assert bound.step_time_s(schedule) > 0.8 * cost.estimate(layout).step_time_s
    assert bound.busiest_s == pytest.approx(bounds.busiest_s(bound.time, bound.stages))
