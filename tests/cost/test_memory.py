"""Memory: against the papers' formulas and figures, and its own sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from published import table
from shapes import cluster, job, model
from truth import caching_allocator
from truth.live_bytes import LiveBytes

from launcher.api import estimate
from launcher.cluster import Cluster
from launcher.cost import CostModel
from launcher.cost.activations import layer_activations
from launcher.cost.constants import DEFAULT
from launcher.cost.layer import LayerShape
from launcher.cost.memory import state_bytes
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.model import Model, Training
from launcher.stacks import stack_of
from launcher.units import GIB, MIB

FP16 = Training(global_batch=64, dtype="fp16", attention="fused")


def trained(
    of: Model, training: Training, *, on: Cluster | None = None, stack: str = "megatron_lm", **habits: Any
) -> Job:
    return Job(on or cluster(), of, training, stack_of(stack, **habits))


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("tp", [2, 8])
def test_activations_of_a_layer_follow_korthikanti(tp: int, recompute: str, sequence_parallel: bool) -> None:
    # Korthikanti et al. 2022, table 2: s·b·h·(10 + 24/t + 5·a·s/(h·t)), all over t with sequence parallelism.
    of, b = model(hidden=6144, layers=1, heads=64), 4
    s, h, a, t = of.seq_len, of.hidden, of.heads, tp
    core = 5 * a * s / (h * t)
    rest = 34 / t if sequence_parallel else 10 + 24 / t
    whole = {"none": rest + core, "selective": rest, "full": 2 / t if sequence_parallel else 2}[recompute]
    found = layer_activations(trained(of, FP16), LayerShape(b, tp, 1, 1, sequence_parallel), recompute)
    assert found.stored == pytest.approx(s * b * h * whole)


def test_model_states_of_the_22b_model_are_the_papers() -> None:
    # Korthikanti et al. 2022, figure 1: 45.6 GiB of parameters, gradients and optimizer on each of 8 GPUs, 18 bytes a
    # parameter: fp16 weights, and fp32 gradients that the optimizer need not copy.
    row = table("korthikanti2022_table5")[0]
    parts = CostModel(trained(row.job.model, FP16, grad_reduce_dtype="fp32")).memory(row.layout).parts
    states = parts["parameters"] + parts["gradients"] + parts["optimizer"]
    assert states == pytest.approx(45.6 * GIB, rel=0.03)


@pytest.mark.parametrize(
    ("zero", "dtype", "expected"),
    [
        (0, "fp16", (2, 2, 16)),
        (1, "fp16", (2, 2, 16 / 8)),
        (2, "fp16", (2, 2 / 8, 16 / 8)),
        (0, "bf16", (2, 2, 12)),
        (1, "bf16", (2, 2, 12 / 8)),
        (3, "bf16", (0, 4 / 8, 12 / 8)),
        (0, "fp32", (4, 4, 8)),
        (3, "fp32", (4 / 8, 4 / 8, 8 / 8)),
    ],
)  # fmt: skip
def test_states_divide_by_zero_stage(zero: int, dtype: str, expected: tuple[float, float, float]) -> None:
    # Rajbhandari et al. 2020, section 5: 2 + 2 + 12 bytes a parameter, of which each stage shards one more. fp16
    # gradients have an fp32 copy; fully sharded, the fp32 shard is the parameter and gradients are fp32.
    layout = Layout(tp=1, pp=1, dp=8, zero_stage=zero)
    training = Training(global_batch=8, dtype=dtype)
    found = state_bytes(trained(model(), training, grad_reduce_dtype="train"), layout, shards=8)
    assert (found.weights, found.gradients, found.optimizer) == pytest.approx(expected)


def test_megatrons_bf16_takes_18_bytes_a_parameter_and_sharded_6_and_12_over_d() -> None:
    # Megatron-LM, docs of its distributed optimizer; 12.698 GB of a 15B model at d = 24 (its golden values) are that.
    some_job = trained(model(), Training(global_batch=8, dtype="bf16"), grad_reduce_dtype="fp32_from_bf16")
    for zero, expected in ((0, 18), (1, 6 + 12 / 8)):
        found = state_bytes(some_job, Layout(tp=1, pp=1, dp=8, zero_stage=zero), shards=8)
        assert found.weights + found.gradients + found.optimizer == pytest.approx(expected)


def test_gradients_of_the_first_backward_pass_break_up_the_blocks_of_the_logits() -> None:
    """With tensor parallelism part of the smaller of the two is lost to the allocator, except where a buffer was there
    from the start, where one micro-batch is the step, and with a pipeline, which loses a share of its activations."""
    layout = Layout(tp=2, pp=1, dp=4, zero_stage=1)

    def lost(layout: Layout, **habits: bool) -> float:
        return CostModel(job(stack="scaling", of=model(hidden=4096), **habits)).memory(layout).parts["fragmentation"]

    parts = CostModel(job(stack="scaling", of=model(hidden=4096))).memory(layout).parts
    smaller = min(parts["gradients"], parts["logits"])
    assert lost(layout) == pytest.approx(DEFAULT.late_gradient_fraction * smaller)
    assert lost(layout, late_gradients=False) == lost(replace(layout, micro_batch=16)) == 0
    assert lost(replace(layout, tp=1, dp=8)) == 0
    halves = replace(layout, dp=2, pp=2)
    assert lost(halves) == lost(halves, late_gradients=False) > 0


# Peak in GiB, Llama 3.1 8B by torchtitan with torch.compile (benchmarks/llama3_h100_202412_torchtitan.md, tables 1 to
# 3): GPUs, context parallelism, sequence, recomputation, Float8.
TORCHTITAN = [
    (8, 1, 8192, "op", False, 77.0),
    (8, 1, 8192, "op", True, 76.8),
    (128, 1, 8192, "op", False, 62.0),
    (128, 1, 8192, "op", True, 61.8),
    (8, 1, 32768, "full", True, 83.9),
    (8, 2, 65536, "full", True, 84.2),
    (8, 4, 131072, "full", True, 84.0),
    (8, 8, 262144, "full", True, 84.5),
]


@pytest.mark.parametrize(("gpus", "cp", "seq_len", "recompute", "fp8", "gib"), TORCHTITAN)
def test_peaks_with_an_uncompiled_loss_and_growing_segments_are_met(
    gpus: int, cp: int, seq_len: int, recompute: str, fp8: bool, gib: float
) -> None:
    """Its loss was not compiled in 2024: logits in four copies are most of the memory (they were said to be in two)."""
    micro_batch = 2 if recompute == "op" else 1
    words = (
        f"cluster=dgx_h100 cluster.node.gpu.memory_mib=98304 cluster.num_nodes={gpus // 8} model=llama3_8b "
        f"model.seq_len={seq_len} stack=torchtitan stack.year=2024 stack.compile=true layout.tp=1 layout.pp=1 "
        f"layout.cp={cp} layout.dp={gpus // cp} layout.zero_stage=3 layout.micro_batch={micro_batch} "
        f"layout.recompute={recompute} train.global_batch={micro_batch * gpus // cp}"
    )
    found = estimate([*words.split(), f"train.gemm_dtype={'fp8' if fp8 else 'auto'}"])
    assert found.memory_bytes_per_gpu / GIB == pytest.approx(gib, rel=0.04)
    later = estimate([*words.split(), "stack.year=2025"])
    assert later.memory["logits"] < found.memory["logits"] / 3


# Peak of the largest rank in GiB, PaddleNLP on 8 × A100 (FlagOpen/FlagPerf, training/nvidia, LLaMA READMEs): full
# recomputation, FlashAttention, sequence 2,048, vocabulary 32,000.
PADDLE = [
    ("7B", 1, 8, 2, 33.55),
    ("7B", 2, 4, 1, 28.40),
    ("7B", 2, 4, 2, 25.80),
    ("13B", 1, 8, 2, 60.06),
    ("13B", 2, 4, 1, 52.27),
    ("13B", 2, 4, 2, 43.84),
]


@pytest.mark.parametrize(("size", "tp", "dp", "zero", "gib"), PADDLE)
def test_measured_peaks_with_full_recomputation_are_met(size: str, tp: int, dp: int, zero: int, gib: float) -> None:
    hidden, layers, heads, ffn = {"7B": (4096, 32, 32, 11008), "13B": (5120, 40, 40, 13824)}[size]
    shape = replace(
        model(hidden=hidden, layers=layers, heads=heads), ffn_hidden=ffn, gated_mlp=True, vocab=32000,
        tied_embeddings=False, norm="rmsnorm", positions="rotary", bias=False,
    )  # fmt: skip
    training = Training(global_batch=2048, dtype="fp16", attention="flash")
    layout = Layout(tp=tp, pp=1, dp=dp, micro_batch=2, zero_stage=zero, recompute="full")
    memory = CostModel(trained(shape, training, stack="paddlenlp")).memory(layout)
    assert memory.total_bytes / GIB == pytest.approx(gib, rel=0.15)


def test_parts_sum_to_the_total_and_the_worst_stage_is_reported() -> None:
    estimate = CostModel(job(on=cluster(nodes=2), loss_parallel=True, wide_loss=False)).estimate(
        Layout(tp=2, pp=4, dp=2, micro_batch=2)
    )
    assert sum(estimate.memory.values()) == pytest.approx(estimate.memory_bytes_per_gpu)
    assert estimate.worst_stage == 0  # the first holds most micro-batches, and here the logits weigh less
    assert estimate.fits == (estimate.memory_bytes_per_gpu <= estimate.usable_memory_bytes)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_gradients_of_scores_are_counted_as_they_live(dtype: str) -> None:
    """As PyTorch holds them: behind a softmax in fp32 two gradients of the scores are alive, next to what it saved."""
    heads, seq_len = 4, 512
    scores = heads * seq_len**2
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    query, key, value = (torch.randn(1, heads, seq_len, 8, dtype=kind, requires_grad=True) for _ in range(3))
    probabilities = torch.softmax((query @ key.transpose(-1, -2)).float(), dim=-1)
    out = probabilities.to(kind) @ value
    gradient = torch.ones_like(out)
    with LiveBytes() as live:
        out.backward(gradient)
    alive = live.peak_bytes - probabilities.numel() * 4
    assert alive == pytest.approx(8 * scores, rel=0.05)
    of = replace(model(hidden=256, layers=1, heads=heads), seq_len=seq_len, ffn_hidden=256)
    found = [
        layer_activations(
            trained(of, Training(global_batch=8, dtype=dtype, attention=kernel)), LayerShape(1, 1, 1, 1, False), "none"
        ).working
        for kernel in ("math", "flash")
    ]
    assert found[0] == 8 * scores > found[1]


def test_the_embeddings_gradient_is_counted_with_its_sum() -> None:
    of = replace(model(hidden=4096, layers=8, heads=32), vocab=512_000)
    training = Training(global_batch=64, dtype="bf16", attention="flash")
    cost = CostModel(trained(of, training, on=cluster(nodes=2)))
    layout = Layout(tp=2, pp=4, dp=2, recompute="full")
    table, held = of.vocab // 2 * of.hidden * 2, 3  # bytes; micro-batches in flight when the first one's are gone
    stored = held * 2 * of.seq_len * of.hidden * 2  # a layer's input for each, two layers
    assert cost.stage_parts(layout, 0)["activations"] == pytest.approx(table + stored)
    assert cost.stage_parts(layout, 1)["activations"] < table


def test_gpipes_last_stage_holds_the_logits_of_every_micro_batch() -> None:
    cost = CostModel(job(on=cluster(nodes=2), global_batch=64))
    one, all_of_them = (
        cost.stage_parts(Layout(tp=2, pp=4, dp=2, schedule=schedule), 3)["logits"] for schedule in ("1f1b", "gpipe")
    )
    assert all_of_them == 32 * one


def test_deepspeeds_pipeline_has_communicators_of_its_own() -> None:
    layout = Layout(tp=2, pp=4, dp=2, zero_stage=1)
    theirs, plain = (
        CostModel(job(on=cluster(nodes=2), stack=stack)).memory(layout)
        for stack in ("megatron_deepspeed", "megatron_lm")
    )
    assert theirs.parts["buffers"] - plain.parts["buffers"] == pytest.approx(4 * 0.15 * GIB)


def test_experts_are_divided_by_expert_parallelism() -> None:
    of = model(num_experts=8)
    held = {
        ep: CostModel(job(on=cluster(), of=of)).memory(Layout(tp=1, pp=1, dp=8, ep=ep)).parts["parameters"]
        for ep in (1, 2, 8)
    }
    experts = 2 * of.layers * of.mlp_params * of.num_experts
    assert held[1] - held[8] == pytest.approx(experts * 7 / 8)
    assert held[1] - held[2] == pytest.approx(experts / 2)


def test_the_worst_rank_is_found_wherever_a_split_puts_it() -> None:
    some_job = job(on=cluster(nodes=4), of=model(hidden=1024, layers=16, heads=16), wide_loss=False)
    cost = CostModel(some_job)
    layout = Layout(tp=1, pp=4, dp=8, micro_batch=2, layer_split=(2, 2, 10, 2))
    needs = [sum(cost.stage_parts(layout, stage).values()) for stage in range(4)]
    assert cost.memory(layout).stage == 2
    assert cost.memory(layout).total_bytes == max(needs)


def test_the_allocator_loses_at_most_the_two_copies_that_a_plain_loss_is_charged_for() -> None:
    """Without tensor parallelism, by PyTorch's own algorithm: so the estimate adds nothing for late gradients there."""
    for tokens, recomputed in ((2048, False), (8192, True)):
        case = caching_allocator.Case(tokens, 64, recomputed=recomputed)
        alive, needed = caching_allocator.alive_and_needed(case)
        charged = DEFAULT.plain_loss_lost_bytes * tokens * case.vocab
        assert 0.3 * charged < needed - alive < charged


def test_an_allocator_joins_what_is_freed_and_reuses_it() -> None:
    pool = caching_allocator.Allocator(100 * MIB)
    first, second = pool.take(30 * MIB), pool.take(30 * MIB)
    assert pool.reserved == 60 * MIB
    pool.give(first)
    half, other = pool.take(14 * MIB), pool.take(15 * MIB)  # both in the first's segment
    assert pool.reserved == 60 * MIB
    pool.give(half, other)
    assert pool.take(30 * MIB) is half  # joined again
    with pytest.raises(caching_allocator.OutOfMemory):
        pool.take(41 * MIB)
    pool.give(second)
    pool.take(70 * MIB)  # the free segment is given back for it
    assert pool.reserved == 100 * MIB
