"""The search against brute force, and what it promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from itertools import permutations, product
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import cluster, job, model

from launcher.cost import Estimate
from launcher.cost.interval import most_bytes
from launcher.cost.model import HOST_SHARE, CostModel
from launcher.errors import InputError, NoLayoutFits
from launcher.layout import Layout, LayoutRequest
from launcher.layout.degrees import AXES
from launcher.layout.engines import stack_problems
from launcher.layout.job import Job
from launcher.layout.legality import divisors, problems
from launcher.layout.resolve import with_layer_split
from launcher.model import Training
from launcher.planner.explain import reasons
from launcher.planner.lower_bounds import least_memory
from launcher.planner.preference import handicap
from launcher.planner.result import Candidate
from launcher.planner.search import OTHER_ORDER, SLOWER, UNFIT, search
from launcher.planner.space import Degrees, Space
from launcher.stacks import stack_of
from launcher.units import GIB

ANY_RISK = LayoutRequest(risk=1.0)
TINY = model(hidden=512, layers=6, heads=8, seq_len=512)


def able(some_job: Job) -> Job:
    """The job with software that shards and divides whatever there is."""
    zero: dict[str, tuple[int, ...]] = {"zero_stages": (0, 1, 2, 3), "pipeline_zero_stages": (0, 1, 3)}
    return replace(some_job, stack=replace(some_job.stack, sequence_parallel=True, context_parallel=True, **zero))


def with_host(some_job: Job, memory_bytes: float) -> Job:
    node = replace(some_job.cluster.node, host_memory_bytes=memory_bytes)
    return replace(some_job, cluster=replace(some_job.cluster, node=node))


SMALL_JOBS = {
    "one node": job(on=cluster(domains=(4,)), of=TINY, global_batch=4),
    "two domains": job(on=cluster(domains=(2, 2)), of=TINY, global_batch=4, year=2021),
    "two leaves": able(job(on=cluster(nodes=4, domains=(2,), nodes_per_leaf=2), of=TINY, global_batch=4, year=2021)),
    "no NVLink": job(on=cluster(domains=(1, 1, 1, 1)), of=TINY, global_batch=8),
    "odd node": job(on=cluster(domains=(6,)), of=TINY, global_batch=6),
    "experts": job(on=cluster(domains=(4,)), of=replace(TINY, num_experts=4, experts_per_token=2), global_batch=4),
    "shared experts": job(
        on=cluster(domains=(4,)),
        of=replace(
            TINY,
            num_experts=4,
            experts_per_token=2,
            shared_ffn_hidden=TINY.ffn_hidden,
            dense_layers=1,
            dense_ffn_hidden=8 * TINY.ffn_hidden,
        ),
        global_batch=4,
    ),
    "rails": able(
        job(
            on=replace(cluster(nodes=2, domains=(4,), rails=4), oversubscription=8.0),
            of=replace(TINY, num_experts=8, experts_per_token=2),
            global_batch=8,
            year=2021,
        )
    ),
    "of 2022": job(on=cluster(domains=(4,)), of=TINY, global_batch=4, stack="megatron_deepspeed", year=2022),
    "launcher": job(on=cluster(nodes=2, domains=(2,)), of=TINY, global_batch=4, stack="launcher"),
    "torchtitan": job(on=cluster(nodes=2, domains=(2,)), of=TINY, global_batch=4, stack="torchtitan"),
    "fsdp": job(on=cluster(nodes=2, domains=(2,)), of=TINY, global_batch=4, stack="fsdp"),
    "deepspeed": Job(
        cluster(domains=(4,)), TINY, Training(global_batch=4, engine="deepspeed"), stack_of("megatron_lm")
    ),
    "hosts": with_host(job(on=cluster(domains=(4,)), of=TINY, global_batch=4), 1 * GIB),
    "hosts of DeepSpeed": with_host(
        job(on=cluster(nodes=2, domains=(2,)), of=TINY, global_batch=4, stack="deepspeed"), 1 * GIB
    ),
}


@cache
def every_layout(name: str, *, across: bool = False) -> list[Layout]:
    """All legal layouts that the job's stack has, by trying every combination of keys."""
    some_job = SMALL_JOBS[name]
    world, batch = some_job.cluster.max_ranks, some_job.training.global_batch
    orders = ["-".join(order) for order in permutations(AXES)]
    if len(some_job.cluster.node.domains) * some_job.cluster.num_nodes in (1, world):
        orders = [orders[0], orders[-1]]  # all links are alike
    elif some_job.stack.name in ("launcher", "torchtitan", "fsdp"):
        orders = orders[:6]  # tp first: other jobs try the others
    sequence_parallel = (False, True) if some_job.stack.sequence_parallel else (False,)
    found = []
    for tp, pp, cp in product(divisors(world), repeat=3):
        if world % (tp * pp * cp) or (cp > 1 and not some_job.stack.context_parallel):
            continue
        dp = world // (tp * pp * cp)
        for ep, virtual, micro_batch in product(
            divisors(max(1, some_job.model.num_experts)), (1, 2, 3, 6), divisors(batch)
        ):
            plain = Layout(
                tp=tp,
                pp=pp,
                dp=dp,
                cp=cp,
                ep=ep,
                virtual_stages=virtual,
                micro_batch=micro_batch,
                tp_across_domains=across,
            )
            distinct = orders if name != "rails" else distinct_orders(plain, orders)
            for (zero, group, offload), (recompute, fraction), schedule, sequence, order in product(
                shardings(some_job, plain), passes(some_job), schedules(some_job, plain), sequence_parallel, distinct
            ):
                layout = replace(
                    plain,
                    zero_stage=zero,
                    shard_group=group,
                    offload_optimizer=offload,
                    recompute=recompute,
                    recompute_fraction=fraction,
                    schedule=schedule,
                    sequence_parallel=sequence,
                    axis_order=order,
                )
                layout = with_layer_split(some_job, layout)
                if 0 in layout.layer_split and not some_job.stack.empty_ends:
                    continue
                if not problems(some_job, layout) and not stack_problems(some_job, layout):
                    found.append(layout)
    return found


def distinct_orders(layout: Layout, orders: list[str]) -> list[str]:
    """One of the orders that differ in axes of one rank alone: they place ranks alike. Smaller jobs try them all."""
    alike = {tuple(axis for axis in order.split("-") if getattr(layout, axis) > 1): order for order in orders}
    return list(alike.values())


def schedules(some_job: Job, layout: Layout) -> list[str]:
    """Schedules of the stack for a pipeline; without one they are all alike."""
    named = some_job.stack.schedules
    if layout.pp == 1:
        return ["1f1b"] if layout.virtual_stages == 1 else []
    return [name for name in named if (name == "interleaved") == (layout.virtual_stages > 1)]


def shardings(some_job: Job, layout: Layout) -> list[tuple[int, int, bool]]:
    """ZeRO stages, each over all ranks and, where the stack can, over those of a node, and with the optimizer on the
    host where it can do that.
    """
    stack = some_job.stack
    stages = stack.zero_stages if layout.pp == 1 else stack.pipeline_zero_stages
    stages = stages if layout.dp * layout.cp > 1 else (0, 1)  # over one rank there is nothing to shard
    node = some_job.cluster.node.num_gpus // layout.tp if layout.cp == 1 else 0
    groups = [0, node] if 1 < node < layout.dp and layout.dp % node == 0 else [0]
    found = [(s, g) for s in stages for g in groups if not g or s in stack.shard_group_stages]
    hosts = stack.offload_stages if some_job.cluster.node.host_memory_bytes else ()
    return [(s, g, offload) for s, g in found for offload in ((False, True) if s in hosts else (False,))]


def passes(some_job: Job) -> list[tuple[str, float]]:
    modes = [(mode, 1.0) for mode in some_job.stack.recompute_modes]
    return modes + [("full", fraction) for fraction in some_job.stack.recompute_fractions]


def times(some_job: Job, layouts: list[Layout]) -> list[float]:
    """Step times, with their handicap, of the layouts that fit, ascending, equal ones once; of axis orders the best."""
    cost, fastest = CostModel(some_job), dict[tuple[object, ...], float]()
    for layout in layouts:
        found = cost.estimate(layout)
        if found.fits:
            key = tuple(value for name, value in vars(layout).items() if name != "axis_order")
            fastest[key] = min(handicapped_s(some_job, layout, found), fastest.get(key, float("inf")))
    return sorted(set(fastest.values()))


def handicapped_s(some_job: Job, layout: Layout, found: Estimate) -> float:
    memory = {"memory_bytes": found.memory_bytes_per_gpu, "usable_bytes": found.usable_memory_bytes}
    return found.step_time_s * (1 + handicap(some_job, layout, **memory))


def ranks(some_job: Job, candidates: Sequence[Candidate]) -> list[float]:
    return [handicapped_s(some_job, candidate.layout, candidate.estimate) for candidate in candidates]


@cache
def little_memory(name: str) -> Job:
    """One of the small jobs on GPUs that about half of its layouts fit, so that the best are at the edge."""
    some_job = SMALL_JOBS[name]
    cost, gpu = CostModel(some_job), some_job.cluster.node.gpu
    needs = sorted(cost.memory(layout).total_bytes for layout in every_layout(name)[::7])
    return with_memory(some_job, int(1.1 * median(needs) * gpu.memory_bytes / cost.usable_bytes))


def with_memory(some_job: Job, memory_bytes: int) -> Job:
    node = some_job.cluster.node
    node = replace(node, gpu=replace(node.gpu, memory_bytes=memory_bytes))
    return replace(some_job, cluster=replace(some_job.cluster, node=node))


@pytest.mark.parametrize("name", SMALL_JOBS)
def test_the_best_are_those_of_brute_force(name: str) -> None:
    some_job = little_memory(name)
    expected = times(some_job, every_layout(name))[:5]
    found = search(some_job, ANY_RISK, top=200, refuse=stack_problems).candidates
    assert sorted(set(ranks(some_job, found)))[:5] == pytest.approx(expected, rel=1e-12)


def test_brute_force_agrees_on_what_a_host_holds_and_another_host_gets_another_layout() -> None:
    some_job, offloaded = little_memory("hosts"), replace(ANY_RISK, offload_optimizer=True)
    layouts = [layout for layout in every_layout("hosts") if layout.offload_optimizer]
    needs = [CostModel(some_job).memory(layout) for layout in layouts]
    best = set()
    for room in sorted({need.host_bytes for need in needs if need.total_bytes <= need.usable_bytes}):
        limited = with_host(some_job, 1.001 * room / HOST_SHARE)
        found = search(limited, offloaded, top=200).candidates
        assert sorted(set(ranks(limited, found)))[:5] == pytest.approx(times(limited, layouts)[:5], rel=1e-12)
        assert max(CostModel(limited).memory(c.layout).host_bytes for c in found) <= 1.001 * room
        best.add(found[0].layout)
    assert len(best) > 1
    least = min(need.host_bytes for need in needs)
    with pytest.raises(NoLayoutFits, match="of each host"):
        search(with_host(some_job, 0.99 * least / HOST_SHARE), offloaded)


def test_brute_force_agrees_where_tp_may_cross_domains() -> None:
    some_job = SMALL_JOBS["two leaves"]
    expected = times(some_job, every_layout("two leaves", across=True))[:5]
    found = search(some_job, replace(ANY_RISK, tp_across_domains=True), top=400).candidates
    assert sorted(set(ranks(some_job, found)))[:5] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", SMALL_JOBS)
@pytest.mark.parametrize("top", [1, 3, 10])
def test_pruning_never_changes_the_best(name: str, top: int) -> None:
    """A search that keeps everything prunes nothing by time: its head is what any other must find."""
    some_job = little_memory(name)
    everything = search(some_job, ANY_RISK, top=1_000_000)
    assert SLOWER not in everything.rejected
    assert search(some_job, ANY_RISK, top=top).candidates == everything.candidates[:top]


def test_a_layout_that_may_run_out_of_memory_is_left_out_where_another_is_safer() -> None:
    some_job = little_memory("one node")
    usable = CostModel(some_job).usable_bytes
    safe, any_risk = search(some_job, LayoutRequest(), top=50), search(some_job, ANY_RISK, top=50)
    assert all(c.estimate.fit_probability >= 0.95 for c in safe.candidates)
    assert any(c.estimate.fit_probability < 0.95 for c in any_risk.candidates)
    assert safe.best.estimate.memory_bytes_per_gpu <= most_bytes(usable, risk=0.05) < usable


def test_a_risk_is_better_than_no_plan_and_is_named() -> None:
    some_job = SMALL_JOBS["one node"]
    least = min(CostModel(some_job).memory(layout).total_bytes for layout in every_layout("one node"))
    tight = with_memory(some_job, int(least * 1.03 + 0.26 * GIB))
    found = search(tight, LayoutRequest(), top=3)
    assert found.best.estimate.fit_probability < 0.95
    assert any("it fits with a probability of" in line for line in reasons(found, CostModel(tight))[0])


def test_a_limit_of_memory_is_kept_or_the_least_that_is_needed_is_named() -> None:
    free = search(ROOMY, LayoutRequest(), top=1).best.estimate.memory_bytes_per_gpu
    found = search(ROOMY, LayoutRequest(max_memory_gib=0.9 * free / GIB), top=20)
    assert max(c.estimate.memory_bytes_per_gpu for c in found.candidates) <= 0.9 * free
    with pytest.raises(NoLayoutFits, match=r"layout\.max_memory_gib=0\.01: tp.* needs least"):
        search(ROOMY, LayoutRequest(max_memory_gib=0.01))


def test_a_margin_of_memory_is_left_free_or_the_least_that_is_needed_is_named() -> None:
    best = search(ROOMY, LayoutRequest(), top=1).best.estimate
    margin = 1 - 0.9 * best.memory_bytes_per_gpu / best.usable_memory_bytes
    found = search(ROOMY, LayoutRequest(memory_margin=margin), top=20)
    assert max(c.estimate.memory_bytes_per_gpu for c in found.candidates) <= 0.9 * best.memory_bytes_per_gpu * 1.000001
    with pytest.raises(NoLayoutFits, match=r"layout\.memory_margin=0\.9999: tp.* needs least"):
        search(ROOMY, LayoutRequest(memory_margin=0.9999))


def test_context_parallelism_of_short_sequences_must_win_clearly() -> None:
    """What 70B on 64 GPUs is advised: nobody divides 4k tokens."""
    large = job(on=cluster(nodes=8), of=model(hidden=8192, layers=80, heads=64, seq_len=4096), global_batch=512)
    assert search(large, LayoutRequest(), top=1).best.layout.cp == 1


ROOMY = job(on=cluster(domains=(4, 4)), of=TINY, global_batch=4)


def test_candidates_are_legal_fit_and_are_ranked_by_time_with_their_handicap() -> None:
    result = search(ROOMY, LayoutRequest(), top=50)
    assert all(not problems(ROOMY, c.layout) and c.estimate.fits for c in result.candidates)
    seconds = ranks(ROOMY, result.candidates)
    assert seconds == sorted(seconds)
    assert len({c.layout for c in result.candidates}) == len(result.candidates) == 50


def test_of_axis_orders_the_best_is_shown() -> None:
    result = search(SMALL_JOBS["two leaves"], LayoutRequest(), top=200)
    without = [replace(candidate.layout, axis_order="") for candidate in result.candidates]
    assert len(set(without)) == len(without)
    assert result.rejected[OTHER_ORDER] > 0


def test_every_layout_considered_is_accounted_for() -> None:
    some_job = little_memory("two domains")
    few, many = search(some_job, LayoutRequest(), top=3), search(some_job, LayoutRequest(), top=30)
    for result in (few, many):
        assert result.searched == len(result.candidates) + sum(result.rejected.values())
    assert few.searched == many.searched
    assert few.rejected[UNFIT] > 0 and few.rejected[SLOWER] > 0


def test_searching_twice_gives_the_same() -> None:
    assert search(ROOMY, LayoutRequest(), top=20) == search(ROOMY, LayoutRequest(), top=20)


PINS = [
    {"tp": 2},
    {"pp": 2},
    {"dp": 4},
    {"cp": 2},
    {"micro_batch": 2},
    {"virtual_stages": 1},
    {"pp": 2, "virtual_stages": 3},
    {"zero_stage": 2},
    {"recompute": "full"},
    {"sequence_parallel": True},
    {"offload_optimizer": True},
    {"offload_optimizer": True, "tp": 8},
    {"axis_order": "tp-pp-dp-cp"},
    {"schedule": "gpipe"},
    {"schedule": "zb_h1", "pp": 2},
    {"schedule": "interleaved", "pp": 2},
    {"pp": 2, "virtual_stages": 1, "layer_split": (4, 2)},
    {"tp": 2, "pp": 2, "dp": 2, "cp": 1, "micro_batch": 4, "zero_stage": 1, "recompute": "none"},
]


@pytest.mark.parametrize("pins", PINS, ids=str)
def test_what_is_pinned_is_kept(pins: dict[str, object]) -> None:
    some_job = job(on=cluster(domains=(8,)), of=TINY, global_batch=16)
    result = search(some_job, LayoutRequest(**pins), top=20)
    for candidate in result.candidates:
        assert {key: getattr(candidate.layout, key) for key in pins} == pins


def test_pinning_the_first_choice_finds_it_again() -> None:
    free = search(ROOMY, LayoutRequest(), top=1).best
    keys = [f.name for f in fields(LayoutRequest) if hasattr(free.layout, f.name)]
    assert search(ROOMY, LayoutRequest(**{key: getattr(free.layout, key) for key in keys}), top=1).best == free


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Small jobs with odd sizes of everything."""
    domains = draw(st.sampled_from([(1,), (2,), (4,), (3,), (6,), (2, 2), (1, 1, 1), (4, 4), (3, 1)]))
    fabric = cluster(
        nodes=draw(st.integers(1, 3)),
        domains=domains,
        nodes_per_leaf=draw(st.integers(0, 3)),
        rails=draw(st.sampled_from([1, 1, 2, 8])),
        memory_gib=draw(st.sampled_from([2, 3, 5, 80])),
    )
    node = replace(fabric.node, host_memory_bytes=draw(st.sampled_from([0, 2 * GIB, 512 * GIB])))
    fabric = replace(fabric, oversubscription=draw(st.sampled_from([1.0, 4.0])), node=node)
    shape = model(
        hidden=draw(st.sampled_from([256, 1536])),
        layers=draw(st.integers(1, 7)),
        heads=draw(st.sampled_from([4, 6, 8])) * 2,
        seq_len=draw(st.sampled_from([96, 512, 1000])),
        num_experts=draw(st.sampled_from([0, 0, 4])),
    )
    return job(
        on=fabric,
        of=replace(shape, hidden=shape.heads * 64, head_dim=64),
        global_batch=draw(st.sampled_from([4, 6, 15])),
    )


@given(jobs(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_pruning_never_changes_the_best_of_any_job(some_job: Job, across: bool) -> None:
    request = LayoutRequest(tp_across_domains=across)
    try:
        everything = search(some_job, request, top=1_000_000)
    except (InputError, NoLayoutFits) as error:
        with pytest.raises(type(error)):
            search(some_job, request, top=2)
        return
    assert search(some_job, request, top=2).candidates == everything.candidates[:2]


def test_tp_stays_in_the_domain_unless_it_may_leave() -> None:
    two_nodes = job(on=cluster(nodes=2, domains=(2,)), of=TINY, global_batch=8)
    assert {c.layout.tp for c in search(two_nodes, LayoutRequest(), top=1000).candidates} == {1, 2}
    free = search(two_nodes, LayoutRequest(tp_across_domains=True), top=10_000).candidates
    assert {c.layout.tp for c in free} == {1, 2, 4}


def test_gpus_without_nvlink_get_no_tensor_parallelism_unasked() -> None:
    result = search(SMALL_JOBS["no NVLink"], LayoutRequest(), top=1000)
    assert {c.layout.tp for c in result.candidates} == {1}


def test_orders_that_differ_in_the_spine_alone_count_where_its_measured_rate_is_lower() -> None:
    fabric = cluster(nodes=4, domains=(1,), nodes_per_leaf=2)
    slow = replace(fabric, node=replace(fabric.node, busbw_bytes_per_s={"leaf": 100e9, "spine": 25e9}))
    degrees = Degrees(tp=1, cp=1, pp=2, dp=2, ep=1)
    few, many = (len(Space(job(on=on, of=TINY), LayoutRequest()).axis_orders(degrees)) for on in (fabric, slow))
    assert few < many


def test_rails_change_the_plan_where_the_spine_is_oversubscribed() -> None:
    """Experts over two nodes exchange tokens over one leaf, but from rail to rail over the spine."""
    experts = replace(model(hidden=4096, layers=16, heads=32, num_experts=48), ffn_hidden=8192, gated_mlp=True)
    found = {}
    for rails, oversubscription in product((1, 8), (1.0, 8.0)):
        fabric = replace(cluster(nodes=4, rails=rails), oversubscription=oversubscription, pxn=False)
        some_job = job(on=fabric, of=experts, global_batch=512, grad_reduce_dtype="train", fused_activation=False)
        result = search(some_job, LayoutRequest(pp=1, risk=1.0), top=1)
        found[rails, oversubscription] = result.best
    assert found[1, 1.0] == found[1, 8.0]
    assert found[8, 1.0].layout == found[1, 1.0].layout
    assert found[8, 1.0].estimate.step_time_s == pytest.approx(found[1, 1.0].estimate.step_time_s)
    assert found[1, 8.0].layout.ep == 16
    assert found[8, 8.0].layout.ep == 8
    assert found[8, 8.0].estimate.step_time_s > found[1, 8.0].estimate.step_time_s


def test_a_mig_cluster_is_planned_as_islands_of_one() -> None:
    slices = job(on=cluster(nodes=2, domains=(1,) * 14, memory_gib=10, mig_profile="1g.10gb"), of=TINY, global_batch=8)
    result = search(slices, LayoutRequest(), top=100)
    assert {c.layout.world_size for c in result.candidates} == {1}


def test_what_the_program_cannot_run_is_left_out_and_counted() -> None:
    def no_pipeline(_: Job, layout: Layout) -> list[str]:
        return ["this program has no pipeline: set layout.pp=1"] if layout.pp > 1 else []

    result = search(ROOMY, LayoutRequest(), top=1000, refuse=no_pipeline)
    assert {c.layout.pp for c in result.candidates} == {1}
    assert result.rejected["the engine cannot run it"] > 0
    with pytest.raises(InputError, match="has no pipeline"):
        search(ROOMY, LayoutRequest(pp=2), refuse=no_pipeline)


REFUSED = [
    # what is pinned, words of the message
    ({"tp": 3}, ["layout.tp=3", "8 heads", "choose one of 1, 2, 4"]),
    ({"pp": 5}, ["does not fill the 8 GPUs"]),
    ({"micro_batch": 5}, ["train.global_batch=4 does not divide"]),
    ({"tp": 8}, ["does not fit in one NVSwitch domain", "tp_across_domains=true"]),
    ({"ep": 2}, ["needs a model with experts"]),
    ({"tp": 3, "pp": 7, "dp": 5, "micro_batch": 7}, ["8 heads", "does not fill", "does not divide by dp"]),
    ({"virtual_stages": 2, "pp": 1}, ["needs pp > 1"]),
    ({"layer_split": (3, 2), "pp": 2}, ["[3, 2]", "sum to 6"]),
    ({"sequence_parallel": True, "tp": 1}, ["needs tp > 1"]),
]


@pytest.mark.parametrize(("pins", "words"), REFUSED, ids=[str(pins) for pins, _ in REFUSED])
def test_an_illegal_request_is_reported_with_all_the_rules_in_the_way(
    pins: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        search(ROOMY, LayoutRequest(**pins))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_where_nothing_fits_the_nearest_miss_and_what_helps_are_reported() -> None:
    large = job(on=cluster(domains=(8,), memory_gib=16), of=model(hidden=8192, layers=48, heads=64), global_batch=16)
    with pytest.raises(NoLayoutFits) as caught:
        search(large, LayoutRequest())
    message = str(caught.value)
    assert "Nearest miss: tp" in message and "too much" in message
    needed = int(message.partition("cluster.num_nodes=")[2].split()[0])
    more = replace(large, cluster=replace(large.cluster, num_nodes=needed))
    assert search(more, LayoutRequest(), top=1).candidates
    half = replace(large, cluster=replace(large.cluster, num_nodes=needed // 2))
    with pytest.raises(NoLayoutFits):
        search(half, LayoutRequest())


def test_the_nearest_miss_is_the_least_memory_of_all() -> None:
    some_job = with_memory(SMALL_JOBS["two domains"], 100_000_000)
    cost = CostModel(some_job)
    least = min(cost.memory(layout).total_bytes for layout in every_layout("two domains"))
    with pytest.raises(NoLayoutFits) as caught:
        search(some_job, LayoutRequest())
    brief = str(caught.value).partition("Nearest miss: ")[2].partition(" needs")[0]
    smallest = [layout for layout in every_layout("two domains") if layout.brief() == brief]
    assert min(cost.memory(layout).total_bytes for layout in smallest) == pytest.approx(least)


def test_where_a_pinned_key_is_what_does_not_fit_setting_it_free_is_advised() -> None:
    roomy = job(on=cluster(domains=(4, 4)), of=TINY, global_batch=64)
    pinned = LayoutRequest(micro_batch=64, dp=1)
    cost = CostModel(roomy)
    least = cost.memory(least_memory(Space(roomy, pinned), cost)).total_bytes
    edge = with_memory(roomy, int(0.99 * least * roomy.cluster.node.gpu.memory_bytes / cost.usable_bytes))
    with pytest.raises(NoLayoutFits) as caught:
        search(edge, pinned)
    assert "layout.micro_batch=" in str(caught.value) and "instead of 64" in str(caught.value)


def test_where_no_single_key_helps_several_are_set_free_together() -> None:
    pinned = LayoutRequest(dp=1, tp=1, micro_batch=64, recompute="none", zero_stage=0)
    some_job = with_memory(job(on=cluster(domains=(4, 4)), of=TINY, global_batch=64), 1_300_000_000)
    with pytest.raises(NoLayoutFits) as caught:
        search(some_job, pinned)
    assert " together with " in str(caught.value)
