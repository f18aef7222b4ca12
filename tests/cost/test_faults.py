"""What estimates once got wrong for a user: each with the direction that it must have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shapes import cluster, job, model

from launcher.cluster import Cluster
from launcher.config.compose import load
from launcher.cost import CostModel
from launcher.cost.estimate import Estimate
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.layout.resolve import plain_layout
from launcher.units import GIB


def estimated(*overrides: str) -> Estimate:
    settings = load(overrides)
    return CostModel(settings.job).estimate(plain_layout(settings.job, settings.request))


LLAMA_70B = ["cluster=dgx_a100_80g", "model=llama3_70b", "stack=fsdp", "train.global_batch=256"]


@pytest.mark.parametrize("ep", [1, 2, 8])
def test_gradients_of_experts_cost_data_parallel_traffic(ep: int) -> None:
    asked = ["cluster=dgx_h100", "cluster.num_nodes=8", "train.global_batch=64", "stack=fsdp", "layout.tp=1"]
    sparse = estimated(*asked, "model=mixtral_8x7b", f"layout.ep={ep}", "layout.zero_stage=3")
    dense = estimated(*asked, "model=llama2_7b", "model.seq_len=4096", "layout.zero_stage=3")
    traffic = [found.time["dp_comm"] + found.time["dp_comm_hidden"] for found in (sparse, dense)]
    assert traffic[0] > (4 if ep < 8 else 1) * traffic[1]


def test_a_shard_group_keeps_more_and_sends_less_over_the_network() -> None:
    words = [
        *LLAMA_70B,
        "cluster.num_nodes=16",
        "cluster.node.num_nics=4",
        "cluster.node.nic_gbps=100",
        "layout.tp=1",
        "layout.zero_stage=3",
        "layout.recompute=full",
    ]
    everywhere, grouped = estimated(*words), estimated(*words, "layout.shard_group=node")
    states = [
        sum(found.memory[part] for part in ("parameters", "gradients", "optimizer")) for found in (everywhere, grouped)
    ]
    assert states[1] > 130 * GIB > 15 * GIB > states[0] - everywhere.memory["parameters"]
    dp = [found.time["dp_comm"] + found.time["dp_comm_hidden"] for found in (everywhere, grouped)]
    assert dp[1] < dp[0]


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_sequence_parallelism_is_no_slower_with_current_software(tp: int) -> None:
    asked = job(of=model(hidden=5120, layers=8, heads=40), global_batch=64 // tp, stack="megatron_lm")
    layout = Layout(tp=tp, pp=1, dp=8 // tp, micro_batch=2)
    with_it, without = (
        CostModel(asked).estimate(replace(layout, sequence_parallel=on)).step_time_s for on in (True, False)
    )
    assert with_it < without * 1.005


def test_a_sharded_optimizer_does_not_change_the_software() -> None:
    asked = job(on=cluster(nodes=8), of=model(hidden=8192, layers=16, heads=64), global_batch=64, year=2022)
    layout = Layout(tp=8, pp=4, dp=2, recompute="full")
    plain, sharded = (CostModel(asked).estimate(replace(layout, zero_stage=stage)).time["compute"] for stage in (0, 1))
    assert sharded == pytest.approx(plain)


def test_an_offloaded_optimizer_needs_the_hosts_memory() -> None:
    words = ["cluster=dgx_a100_80g", "model=llama2_13b", "train.global_batch=8", "train.offload_optimizer=true"]
    words += ["train.engine=deepspeed", "layout.zero_stage=1", "layout.tp=1", "layout.recompute=full"]
    assert estimated(*words).fits
    assert not estimated(*words, "cluster.node.host_memory_gib=1").fits
    assert estimated(*words, "cluster.node.host_memory_gib=0").fits  # unknown


def test_a_pcie_card_computes_less_than_the_sxm_part_at_its_power() -> None:
    asked = ["model=llama2_7b", "train.global_batch=8", "cluster.node.num_gpus=1", "cluster.node.domains=null"]
    sxm, pcie = (
        estimated(f"cluster={name}", "cluster.node.domain_size=1", *asked, "layout.recompute=full").time["compute"]
        for name in ("dgx_a100_40g", "a100_pcie_40g")
    )
    assert 1.03 < pcie / sxm < 1.3


def on_direct_links(tp: int) -> float:
    """Seconds of tensor-parallel collectives on a four-GPU board with direct links between all GPUs."""
    board = cluster(domains=(4,))
    board = replace(board, node=replace(board.node, nvlink="direct"))
    return _tp_seconds(board, tp)


def _tp_seconds(on: Cluster, tp: int) -> float:
    asked = job(on=on, of=model(hidden=8192, layers=4, heads=64), global_batch=8)
    late = CostModel(asked, replace(CostModel(asked).constants, late_rank_s=0.0))
    return late.estimate(Layout(tp=tp, pp=1, dp=4 // tp, micro_batch=2)).time["tp_comm"]


def test_a_pair_of_a_four_gpu_board_has_a_third_of_the_links() -> None:
    assert on_direct_links(2) > 1.5 * _tp_seconds(cluster(domains=(4,)), 2)


def test_logits_of_llama_are_divided_where_the_software_divides_them() -> None:
    words = ["cluster=dgx_h100", "model=llama3_70b", "train.global_batch=16", "layout.tp=8", "layout.micro_batch=16"]
    words += ["stack=torchtitan", "layout.zero_stage=3", "layout.sequence_parallel=true", "layout.recompute=full"]
    logits = estimated(*words).memory["logits"]
    whole = 16 * 8192 * 128256 * (2 + 12)
    assert logits == pytest.approx(whole / 8, rel=0.02)
    assert estimated(*words, "stack.loss_parallel=false").memory["logits"] > 8 * logits


def test_rotated_queries_and_keys_replace_those_from_before_but_for_a_joint_projection() -> None:
    words = ["cluster=dgx_a100_80g", "model=llama2_7b", "train.global_batch=8", "layout.tp=1"]
    apart, joint, fused = (
        estimated(*words, f"stack.joint_qkv={flag}", f"stack.fused_rotary={rotary}").memory["activations"]
        for flag, rotary in (("false", "false"), ("true", "false"), ("true", "true"))
    )
    assert apart == fused < joint


@pytest.mark.parametrize(("fraction", "share"), [(0.25, 0.25), (0.5, 0.5)])
def test_recomputing_a_part_of_the_layers_costs_that_part(fraction: float, share: float) -> None:
    words = ["cluster=dgx_a100_80g", "model=llama2_7b", "train.global_batch=64", "stack=fsdp", "layout.tp=1"]
    none, full = (estimated(*words, f"layout.recompute={mode}") for mode in ("none", "full"))
    part = estimated(*words, "layout.recompute=full", f"layout.recompute_fraction={fraction}")
    added = (part.step_time_s - none.step_time_s) / (full.step_time_s - none.step_time_s)
    assert added == pytest.approx(share, abs=0.02)
    assert full.memory["activations"] < part.memory["activations"] < none.memory["activations"]


def test_recomputation_by_operator_lies_between_none_and_full() -> None:
    words = ["cluster=dgx_h100", "model=llama3_8b", "train.global_batch=16", "stack=torchtitan", "layout.zero_stage=3"]
    none, op, full = (estimated(*words, f"layout.recompute={mode}") for mode in ("none", "op", "full"))
    assert none.step_time_s < op.step_time_s < full.step_time_s
    assert none.memory["activations"] > op.memory["activations"] > full.memory["activations"]


def test_compiling_saves_memory_traffic() -> None:
    words = ["cluster=dgx_a100_80g", "model=llama2_7b", "train.global_batch=64", "stack=fsdp", "layout.tp=1"]
    eager, compiled = (estimated(*words, f"stack.compile={flag}").step_time_s for flag in ("false", "true"))
    assert 0.8 < compiled / eager < 0.97


def test_a_gated_activation_in_one_kernel_keeps_three_tensors_and_not_four() -> None:
    words = ["cluster=dgx_a100_80g", "model=llama2_7b", "train.global_batch=64", "stack=fsdp", "layout.tp=1"]
    apart, fused, compiled = (
        estimated(*words, *more) for more in ([], ["stack.fused_activation=true"], ["stack.compile=true"])
    )
    kept = apart.memory["activations"] - fused.memory["activations"]
    assert kept == pytest.approx(32 * 2 * 4096 * 11008)  # layers × bytes × tokens × inner width
    assert compiled.step_time_s < fused.step_time_s < apart.step_time_s


PIPELINE = ["cluster=dgx_a100_80g", "cluster.num_nodes=4", "model=gpt3_6b7", "train.global_batch=64", "layout.tp=1"]
PIPELINE += ["stack=megatron_lm", "layout.pp=4", "layout.dp=8", "layout.virtual_stages=2", "layout.zero_stage=2"]


def test_a_pipeline_that_shards_gradients_holds_fewer_and_sends_more() -> None:
    """Two of four chunks are whole, and reduced after each group of pp micro-batches (64 / 8 / 4 = 2 groups)."""
    words = [*PIPELINE, "layout.virtual_stages=4"]
    once, sharded = (estimated(*words, f"stack.pipeline_shards_gradients={flag}") for flag in ("false", "true"))
    assert sharded.memory["gradients"] == pytest.approx(once.memory["gradients"] * (1 / 8 + 7 / 8 / 2))
    assert _dp_seconds(sharded) > 1.3 * _dp_seconds(once)
    two = estimated(*PIPELINE, "stack.pipeline_shards_gradients=true")
    assert two.memory["gradients"] == pytest.approx(estimated(*PIPELINE).memory["gradients"])


def test_a_pipeline_that_frees_inputs_of_stages_keeps_one_tensor_less_for_each_of_its_chunks() -> None:
    kept, freed = (estimated(*PIPELINE, f"stack.frees_stage_inputs={flag}") for flag in ("false", "true"))
    chunks = 2 * 3 + 4 + 1 - 4  # of the first rank, less those whose input are tokens
    saved = kept.memory["activations"] - freed.memory["activations"]
    assert saved == pytest.approx(chunks * 2048 * 4096 * 2)


def test_what_the_allocator_loses_in_a_pipeline_can_be_said() -> None:
    none, half = (estimated(*PIPELINE, f"stack.pipeline_fragmentation={share}") for share in (0, 0.5))
    assert none.memory["fragmentation"] == 0
    assert half.memory["fragmentation"] >= 0.5 * half.memory["activations"]


def test_messages_of_data_parallelism_cost_a_latency_each() -> None:
    words = ["cluster=dgx_a100_80g", "cluster.num_nodes=4", "model=gpt3_1b3", "train.global_batch=64", "stack=fsdp"]
    words += ["layout.tp=1", "layout.zero_stage=1", "stack.overlap_grad_reduce=false"]
    flat, owner, each = (
        _dp_seconds(estimated(*words, f"stack.dp_messages={how}")) for how in ("flat", "per_owner", "per_parameter")
    )
    assert flat < owner < each < 6 * flat
    grouped = [
        _dp_seconds(estimated(*words, f"stack.dp_messages={how}", "layout.shard_group=node"))
        for how in ("flat", "per_owner")
    ]
    assert 0 < grouped[1] - grouped[0] < (owner - flat) / 2  # eight owners of a node, and not 32


def test_more_ranks_with_a_message_for_each_owner_are_no_slower() -> None:
    """Each message paid the latency of the whole ring: 1.3B on 1,024 GPUs was three times as slow as on 512."""
    words = ["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=1024", "stack=internevo", "layout.tp=1"]
    words += ["layout.pp=1", "layout.micro_batch=1", "layout.zero_stage=1"]
    steps = [estimated(*words, f"cluster.num_nodes={nodes}").step_time_s for nodes in (32, 64, 128)]
    assert steps == sorted(steps, reverse=True)


def test_fsdp_with_sharded_gradients_gathers_in_each_pass_behind_compute() -> None:
    """SHARD_GRAD_OP: one gather and one reduction for each of eight micro-batches; ZeRO-3 gathers twice."""
    words = ["cluster=dgx_a100_80g", "model=llama2_7b", "train.global_batch=64", "stack=fsdp", "layout.tp=1"]
    once, each, full = (
        estimated(*words, f"layout.zero_stage={stage}", f"stack.gathers_every_pass={flag}")
        for stage, flag in ((2, "false"), (2, "true"), (3, "true"))
    )
    assert 1.5 < _dp_seconds(each) / _dp_seconds(once) < 2.1
    assert _dp_seconds(full) / _dp_seconds(each) == pytest.approx(1.5, abs=0.1)
    assert each.memory == once.memory


def test_fsdp2_copies_what_it_gathered() -> None:
    words = ["cluster=dgx_a100_80g", "model=llama2_7b", "train.global_batch=64", "stack=fsdp", "layout.zero_stage=3"]
    views, copies = (estimated(*words, f"stack.copies_gathered={flag}").step_time_s for flag in ("false", "true"))
    rate = 2039e9 * 0.761
    assert copies - views == pytest.approx(8 * 6.5e9 * 8 / rate, rel=0.1)  # micro-batches × parameters × bytes


def _dp_seconds(found: Estimate) -> float:
    return found.time["dp_comm"] + found.time["dp_comm_hidden"]


def test_an_estimate_says_how_sure_it_is() -> None:
    asked = job(global_batch=64)
    found = CostModel(asked).estimate(Layout(tp=1, pp=1, dp=8))
    low, high = found.step_time_interval_s
    assert low < found.step_time_s < high
    assert 0.99 >= found.fit_probability > 0.95
    split = CostModel(asked).estimate(Layout(tp=2, pp=1, dp=4))
    assert _width(split) > _width(found)
    unknown = replace(asked.cluster.node.gpu, name="b200")
    elsewhere: Job = replace(asked, cluster=replace(asked.cluster, node=replace(asked.cluster.node, gpu=unknown)))
    assert _width(CostModel(elsewhere).estimate(Layout(tp=1, pp=1, dp=8))) > 1.2 * _width(found)


def test_a_rate_in_a_gpus_file_is_no_measured_run() -> None:
    """It made the intervals of B200 and of PCIe cards as narrow as those of boards with published runs."""
    asked, layout = job(global_batch=64), Layout(tp=1, pp=1, dp=8)
    board = asked.cluster.node.gpu
    widths = {}
    for name in (board.name, "b200_sxm", "h200_sxm", "h100_pcie", "h100_nvl", "a800_sxm_80g", "a100_pcie_80g", "a30"):
        gpu = replace(board, name=name, gemm_flops={"bf16": 271e12})
        on = replace(asked.cluster, node=replace(asked.cluster.node, gpu=gpu))
        widths[name] = _width(CostModel(replace(asked, cluster=on)).estimate(layout))
        calibrated = replace(on, measured=replace(on.measured, date="2026-11-29"))
        assert _width(CostModel(replace(asked, cluster=calibrated)).estimate(layout)) == pytest.approx(
            widths[board.name]
        )
    known = widths.pop(board.name)
    assert all(width > 1.1 * known for width in widths.values())


def test_experts_between_nodes_are_less_sure_than_in_a_node() -> None:
    words = ["cluster=dgx_h100", "cluster.num_nodes=8", "model=mixtral_8x7b", "train.global_batch=256"]
    words += ["stack=megatron_lm", "layout.tp=1", "layout.pp=4", "layout.zero_stage=1", "model.num_experts=16"]
    inside, between = (_width(estimated(*words, f"layout.ep={ep}")) for ep in (8, 16))
    dense = _width(estimated(*words, "model.num_experts=0", "model.experts_per_token=0"))
    assert dense < inside < between


def _width(found: Estimate) -> float:
    low, high = found.step_time_interval_s
    return (high - low) / found.step_time_s


def test_the_chance_of_fitting_falls_as_the_memory_fills() -> None:
    chances = []
    for memory_gib in (80, 44, 42, 40, 30):
        asked = job(on=cluster(memory_gib=memory_gib), of=model(hidden=4096, layers=24, heads=32), global_batch=64)
        chances.append(CostModel(asked).estimate(Layout(tp=4, pp=1, dp=2, micro_batch=4)).fit_probability)
    assert chances == sorted(chances, reverse=True)
