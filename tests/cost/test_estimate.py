"""Estimates of whole layouts: sums, laws, and every kind of machine."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shapes import cluster, job, model

from launcher.config.compose import choices, load
from launcher.cost import CostModel
from launcher.cost.constants import DEFAULT
from launcher.cost.parameters import layer_parameters
from launcher.errors import InputError
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.model import Training
from launcher.stacks import Stack, stack_of

LAYOUTS = st.builds(
    Layout, tp=st.sampled_from([1, 2, 4, 8]), pp=st.sampled_from([1, 2, 4]), dp=st.sampled_from([1, 2, 4]),
    micro_batch=st.sampled_from([1, 2, 4]), zero_stage=st.integers(0, 3),
    recompute=st.sampled_from(["none", "selective", "full"]),
    schedule=st.sampled_from(["1f1b", "gpipe", "zb_h1"]),
)  # fmt: skip


def habitually(asked: Job, **habits: Any) -> Job:
    """The job with these habits of its software."""
    return replace(asked, stack=replace(asked.stack, **habits))


def on_enough(layout: Layout) -> Job:
    return job(on=cluster(nodes=-(-layout.world_size // 8)), global_batch=64)


@given(LAYOUTS)
@settings(max_examples=60, deadline=None)
def test_the_times_sum_to_the_step(layout: Layout) -> None:
    estimate = CostModel(on_enough(layout)).estimate(layout)
    shown = {name: seconds for name, seconds in estimate.time.items() if not name.endswith("_hidden")}
    assert sum(shown.values()) == pytest.approx(estimate.step_time_s)
    assert all(seconds >= -1e-12 for seconds in estimate.time.values()), estimate.time
    assert estimate.mfu is not None
    assert 0 < estimate.mfu <= estimate.hfu < 1


@given(LAYOUTS, st.sampled_from(["nvlink_bytes_per_s", "hbm_bytes_per_s", "pcie_bytes_per_s"]), st.floats(1.01, 4))
@example(Layout(tp=1, pp=1, dp=16, micro_batch=2), "pcie_bytes_per_s", 3.4)  # a tree over two nodes, bound inside them
@example(Layout(tp=4, pp=1, dp=4, zero_stage=3), "pcie_bytes_per_s", 4.0)  # most of what is hidden is latency
@settings(max_examples=60, deadline=None)
def test_a_faster_link_or_memory_never_slows_a_step(layout: Layout, rate: str, factor: float) -> None:
    slow = on_enough(layout)
    node = slow.cluster.node
    better = replace(
        node, gpu=replace(node.gpu, **{rate: getattr(node.gpu, rate) * factor}), nic_gbps=node.nic_gbps * factor
    )
    fast = replace(slow, cluster=replace(slow.cluster, node=better))
    before, after = (CostModel(each).estimate(layout).step_time_s for each in (slow, fast))
    assert after <= before * (1 + 1e-9)


def test_one_model_gives_the_same_answer_for_a_layout_whatever_it_was_asked_before() -> None:
    asked = job(on=cluster(nodes=4))
    shared = CostModel(asked)
    layouts = [Layout(tp=tp, pp=2, dp=16 // tp, recompute=mode) for tp in (1, 2, 8) for mode in ("none", "full")]
    together = [shared.estimate(layout) for layout in layouts]
    assert together == [CostModel(asked).estimate(layout) for layout in layouts]


@pytest.mark.parametrize("name", sorted(choices()["cluster"]))
def test_every_cluster_that_ships_gives_a_finite_estimate(name: str) -> None:
    dtype = ["train.dtype=fp16"] if name == "dgx1_v100" else []  # V100 has no bf16, and a plan says so
    found = load([f"cluster={name}", "model=gpt_tiny", "layout.tp=1", "layout.dp=1", "layout.pp=1", *dtype]).job
    estimate = CostModel(found).estimate(Layout(tp=1, pp=1, dp=1))
    assert math.isfinite(estimate.step_time_s)
    assert estimate.step_time_s > 0
    unknown_peak = found.cluster.node.gpu.peak(found.training.dtype) is None
    assert (estimate.mfu is None) == (estimate.hfu is None) == unknown_peak


def test_gradients_reduced_behind_the_backward_pass_cost_less() -> None:
    asked = job(on=cluster(nodes=8), global_batch=256)
    layout = Layout(tp=1, pp=1, dp=64, zero_stage=1)
    exposed = habitually(asked, overlap_grad_reduce=False)
    behind, after = (CostModel(each).estimate(layout) for each in (asked, exposed))
    assert behind.time["dp_comm_hidden"] > 0 == after.time["dp_comm_hidden"]
    assert behind.step_time_s < after.step_time_s


@pytest.mark.parametrize("year", [2022, 2023, 2024, 2025])
@pytest.mark.parametrize("zero_stage", [0, 1])
def test_megatron_lm_reduces_behind_the_backward_pass_only_with_its_distributed_optimizer(
    year: int, zero_stage: int
) -> None:
    """--overlap-grad-reduce is off by default; scripts pass it next to --use-distributed-optimizer, since 2023."""
    asked = job(on=cluster(nodes=8), global_batch=256, year=year)
    layout = Layout(tp=1, pp=1, dp=64, zero_stage=zero_stage)
    assert (CostModel(asked).estimate(layout).time["dp_comm_hidden"] > 0) == (year >= 2024 and zero_stage == 1)
    for said in (True, False):
        by_hand = job(on=cluster(nodes=8), global_batch=256, year=year, overlap_grad_reduce=said)
        assert (CostModel(by_hand).estimate(layout).time["dp_comm_hidden"] > 0) == said


def test_gradients_that_are_added_in_a_pass_of_their_own_cost_memory_traffic_but_for_the_first() -> None:
    asked = job(of=model(hidden=8192, layers=8, heads=64), global_batch=32, grad_reduce_dtype="fp32_from_bf16")
    apart = habitually(asked, fused_accumulation=False)

    def added(layout: Layout) -> float:
        return CostModel(apart).estimate(layout).step_time_s - CostModel(asked).estimate(layout).step_time_s

    once, four = Layout(tp=1, pp=1, dp=8, micro_batch=4), Layout(tp=1, pp=1, dp=8, micro_batch=1)
    traffic = 10 * asked.model.layers * asked.model.layer_params  # read the bf16 gradient, read and write the fp32 sum
    assert added(once) == 0
    assert added(four) == pytest.approx(3 * traffic / (0.8 * asked.cluster.node.gpu.hbm_bytes_per_s), rel=0.1)
    assert added(replace(four, zero_stage=2)) == 0


def test_recomputation_that_stops_early_saves_the_last_product_and_the_collective_after_it() -> None:
    asked = job(of=model(hidden=8192, layers=8, heads=64), global_batch=8)
    early = habitually(asked, recompute_stops_early=True)

    def saved(layout: Layout) -> float:
        return CostModel(asked).estimate(layout).step_time_s - CostModel(early).estimate(layout).step_time_s

    alone = Layout(tp=1, pp=1, dp=8, recompute="full")
    rates = [CostModel(each).estimate(alone) for each in (asked, early)]
    extra = [found.hardware_tflops_per_gpu / found.model_tflops_per_gpu - 1 for found in rates]
    assert extra[1] / extra[0] == pytest.approx(1 - 8 / (24 + 4 * asked.model.seq_len / asked.model.hidden), rel=1e-6)
    product = 2 * asked.model.layers * asked.model.seq_len * asked.model.hidden * asked.model.ffn_hidden / 244e12
    assert saved(alone) == pytest.approx(product, rel=0.1)
    assert saved(replace(alone, recompute="none")) == saved(replace(alone, recompute="selective")) == 0
    assert (
        saved(Layout(tp=8, pp=1, dp=1, recompute="full")) > 1.2 * product
    )  # an eighth, eight times; and an all-reduce


def test_flash_attention_was_version_1_before_2023() -> None:
    asked = job(of=model(seq_len=16384), global_batch=8)

    def seconds(year: int, attention: str) -> float:
        training = replace(asked.training, attention=attention)
        of_year = Job(asked.cluster, asked.model, training, stack_of("fsdp", year=year))
        return CostModel(of_year).estimate(Layout(tp=1, pp=1, dp=8)).step_time_s

    assert seconds(2022, "flash") == seconds(2022, "flash1") > seconds(2023, "flash")


def test_flash_attention_1_is_the_kernel_of_its_software() -> None:
    asked = job(of=model(seq_len=16384), global_batch=8)
    training = replace(asked.training, attention="flash1")

    def seconds(stack: Stack) -> float:
        of_stack = Job(asked.cluster, asked.model, training, stack)
        return CostModel(of_stack).estimate(Layout(tp=1, pp=1, dp=8)).step_time_s

    fsdp = stack_of("fsdp")
    cuda = replace(fsdp, triton_attention=False)
    assert fsdp.triton_attention and not stack_of("torchtitan").triton_attention
    assert 1.02 < seconds(cuda) / seconds(fsdp) < 1.2
    assert cuda.attention_kernel(replace(asked.training, attention="flash")) == "flash"  # version 2 is not in Triton


def test_deepspeeds_pipeline_sends_and_receives_in_turn() -> None:
    asked = job(on=cluster(nodes=8), of=model(hidden=8192, layers=16, heads=64), global_batch=64)
    theirs = habitually(asked, sends_in_turn=True)
    layout = Layout(tp=8, pp=8, dp=1, sequence_parallel=True)
    at_once, in_turn = (CostModel(each).estimate(layout).time["pp_comm"] for each in (asked, theirs))
    assert in_turn == pytest.approx(2 * at_once)


def test_megatrons_own_gradient_reduction_waited_for_the_backward_pass_until_2024() -> None:
    asked = job(on=cluster(nodes=8), global_batch=256)
    layout = Layout(tp=1, pp=1, dp=64, zero_stage=1)
    hidden = {
        year: CostModel(replace(asked, stack=stack_of("megatron_lm", year=year)))
        .estimate(layout)
        .time["dp_comm_hidden"]
        for year in (2021, 2022, 2023, 2024)
    }
    assert hidden[2022] == hidden[2023] == 0 < hidden[2021]
    assert hidden[2024] > 0


def test_tensor_parallelism_across_pcie_or_nodes_is_dear() -> None:
    links = replace(DEFAULT, late_rank_s=0.0)  # ranks are as late on either
    inside = CostModel(job(on=cluster(domains=(8,))), links).estimate(Layout(tp=8, pp=1, dp=1))
    pcie = CostModel(job(on=cluster(domains=(2, 2, 2, 2))), links).estimate(Layout(tp=8, pp=1, dp=1))
    assert pcie.time["tp_comm"] > 5 * inside.time["tp_comm"]


@pytest.mark.parametrize(
    ("layout", "axis", "collectives"),
    [
        (Layout(tp=8, pp=1, dp=1), "tp_comm", 4),
        (Layout(tp=8, pp=1, dp=1, recompute="full"), "tp_comm", 6),
        (Layout(tp=4, pp=1, dp=1, sequence_parallel=True), "tp_comm", 10),
        (Layout(tp=1, pp=1, dp=1, cp=4), "cp_comm", 3),
    ],
)
@pytest.mark.parametrize("hidden", [256, 4096])  # the host bounds the small one, the device the large one
def test_every_collective_of_a_layer_waits_for_each_other_rank(
    layout: Layout, axis: str, collectives: int, hidden: int
) -> None:
    asked = job(of=model(hidden=hidden), global_batch=4)
    asked = habitually(asked, overlap_grad_reduce=False, tp_overlap="none")
    ranks = max(layout.tp, layout.cp)
    punctual, late = (
        CostModel(asked, replace(DEFAULT, late_rank_s=seconds)).estimate(layout) for seconds in (0.0, 1e-3)
    )
    waits = 4 * asked.model.layers * collectives * (ranks - 1) * 1e-3
    assert late.step_time_s - punctual.step_time_s == pytest.approx(waits)
    assert late.time[axis] - punctual.time[axis] == pytest.approx(waits)


def test_gradients_that_every_pass_reduces_are_copied_there() -> None:
    asked = job(of=model(hidden=4096), global_batch=64)
    whole = CostModel(asked)
    once, always = (whole.estimate(Layout(tp=1, pp=1, dp=8, zero_stage=stage)) for stage in (1, 2))
    device, parameters = whole.device, layer_parameters(asked.model, tp=1, ep=1).total
    copied = (2 + 4) * parameters / device.hbm_bytes_per_s + device.gap_s  # read in bf16, written in fp32
    assert always.time["compute"] - once.time["compute"] == pytest.approx(8 * asked.model.layers * copied)


def test_offloading_the_optimizer_trades_memory_for_time() -> None:
    asked = job(of=model(hidden=4096, layers=32, heads=32))
    here, there = (
        CostModel(asked).estimate(Layout(tp=8, pp=1, dp=1, offload_optimizer=offload)) for offload in (False, True)
    )
    assert there.memory["optimizer"] == 0 < here.memory["optimizer"]
    assert there.time["optimizer"] > here.time["optimizer"]


def test_experts_talk_all_to_all_and_long_contexts_in_a_ring() -> None:
    experts = CostModel(job(of=model(num_experts=8))).estimate(Layout(tp=1, pp=1, dp=8, ep=8))
    assert experts.time["ep_comm"] > 0
    long = CostModel(job(of=model(seq_len=32768), global_batch=8)).estimate(Layout(tp=1, pp=1, dp=1, cp=8))
    assert long.time["cp_comm"] > 0


def test_a_measured_gemm_rate_replaces_the_fraction_of_the_peak() -> None:
    asked = job(of=model(hidden=8192, layers=8, heads=64))
    node = asked.cluster.node
    slower = replace(asked.cluster, node=replace(node, gpu=replace(node.gpu, gemm_flops={"bf16": 123e12})))
    rated = CostModel(replace(asked, cluster=slower))
    layout = Layout(tp=8, pp=1, dp=1, micro_batch=4)
    assert rated.estimate(layout).step_time_s > 1.5 * CostModel(asked).estimate(layout).step_time_s


def test_an_older_stack_is_slower_on_equal_work() -> None:
    asked = job(on=cluster(nodes=8), of=model(hidden=12288, layers=96, heads=96), global_batch=64)
    layout = Layout(tp=8, pp=8, dp=1, recompute="full")
    old, new = (
        CostModel(replace(asked, stack=stack_of("megatron_lm", year=year))).estimate(layout) for year in (2021, 2022)
    )
    assert 1.02 < old.step_time_s / new.step_time_s < 1.15  # about 9 % between the papers of the two years


def test_training_dtype_fp32_uses_its_own_peak() -> None:
    asked = job()
    full = replace(asked, training=Training(global_batch=64, dtype="fp32"))
    layout = Layout(tp=1, pp=1, dp=8, micro_batch=4)
    assert CostModel(full).estimate(layout).step_time_s > 4 * CostModel(asked).estimate(layout).step_time_s


def test_cpu_ranks_that_share_cores_are_slower() -> None:
    found = load(["cluster=cpu", "model=gpt_tiny", "layout.tp=2", "layout.pp=2", "layout.dp=2"]).job
    layout = Layout(tp=2, pp=2, dp=2)
    steps = {}
    for cores in (2, 8, 64):
        shared = replace(found.cluster, node=replace(found.cluster.node, cores=cores))
        steps[cores] = CostModel(Job(shared, found.model, found.training)).estimate(layout).step_time_s
    assert steps[2] > 3 * steps[8]
    assert steps[64] == steps[8]


def test_a_gpu_of_unknown_rate_is_reported_not_guessed() -> None:
    asked = job()
    unknown = replace(
        asked.cluster, node=replace(asked.cluster.node, gpu=replace(asked.cluster.node.gpu, peak_flops={}))
    )
    with pytest.raises(InputError, match="the rate of a100_sxm_80g in bf16 is unknown"):
        CostModel(Job(unknown, asked.model, asked.training))
