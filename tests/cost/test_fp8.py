"""Products in fp8: held against torchtitan's runs, refused where GPUs or our engines have none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher import Job
from launcher.api import estimate
from launcher.cli import main
from launcher.config.compose import load
from launcher.cost import CostModel, Estimate
from launcher.cost.interval import unmeasured
from launcher.errors import LauncherError
from launcher.layout import Layout
from launcher.report.terminal import heading

# Tokens a second and GPU, Llama 3.1 8B, FSDP, local batch of 2, selective recomputation by operator, without and with
# Float8: pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 3 (H100 of 96 GB, 500 W).
TORCHTITAN = {8: (6667, 8532), 128: (6514, 8380)}
FP8 = "train.gemm_dtype=fp8"
LLAMA = ("model=llama3_8b", "train.global_batch=64")


def torchtitan(gpus: int, *more: str) -> Estimate:
    words = (
        "cluster=dgx_h100 cluster.node.gpu.memory_mib=98304 cluster.node.gpu.hbm_gbytes_per_s=2400 model=llama3_8b "
        f"stack=torchtitan stack.year=2024 stack.compile=true cluster.num_nodes={gpus // 8} layout.dp={gpus} "
        f"train.global_batch={2 * gpus} layout.tp=1 layout.pp=1 layout.micro_batch=2 layout.zero_stage=3 "
        "layout.recompute=op"
    )
    return estimate([*words.split(), *more])


@pytest.mark.parametrize("gpus", TORCHTITAN)
def test_the_gain_that_torchtitan_measured_is_estimated(gpus: int) -> None:
    without, with_fp8 = TORCHTITAN[gpus]
    half, narrow = torchtitan(gpus), torchtitan(gpus, FP8)
    assert half.step_time_s / narrow.step_time_s == pytest.approx(with_fp8 / without, rel=0.03)
    low, high = narrow.step_time_interval_s
    assert low <= 2 * 8192 / with_fp8 <= high


def test_no_published_run_was_held_against_it_so_the_interval_is_wider() -> None:
    half, narrow = torchtitan(8), torchtitan(8, FP8)
    widths = [(e.step_time_interval_s[1] - e.step_time_interval_s[0]) / e.step_time_s for e in (half, narrow)]
    assert widths[1] > 1.2 * widths[0]
    job = load(["cluster=dgx_h100", *LLAMA, FP8]).job
    assert "products in fp8" in unmeasured(job, Layout(tp=1, pp=1, dp=8))
    assert "bf16 with products in fp8" in heading(job)[1]


def test_attention_head_and_messages_stay_as_they_are() -> None:
    half, narrow = (CostModel(load(["cluster=dgx_h100", *LLAMA, *more]).job) for more in ((), (FP8,)))
    layout = Layout(tp=2, pp=1, dp=4, sequence_parallel=True)
    assert half.end_costs(layout) == narrow.end_costs(layout)
    assert half.layer_cost(layout).tp_s == narrow.layer_cost(layout).tp_s
    assert narrow.layer_cost(layout).total_s < half.layer_cost(layout).total_s


def test_a_rate_that_was_measured_is_taken() -> None:
    slow, fast = (torchtitan(8, FP8, f"cluster.node.gpu.sustained_tflops.fp8={rate}") for rate in (900, 1500))
    assert slow.step_time_s > 1.1 * fast.step_time_s


def test_transformer_engine_keeps_weights_and_transposes_and_torchao_does_not() -> None:
    """2 bytes a parameter of the layers, but where ZeRO-3 gathers them."""
    words = ["cluster=dgx_h100", *LLAMA, "stack=megatron_lm", "stack.year=2025"]
    job = load(words).job
    layers = job.model.layers * job.model.layer_params
    layout = Layout(tp=1, pp=1, dp=8, zero_stage=1)

    def more(layout: Layout, *said: str) -> float:
        weights = [
            CostModel(load([*words, *said, *fp8]).job).memory(layout).parts["parameters"] for fp8 in ((FP8,), ())
        ]
        return weights[0] - weights[1]

    assert more(layout) == pytest.approx(2 * layers, rel=0.01)
    assert more(layout, "stack.caches_fp8=false") == more(layout, "stack=torchtitan") == 0
    assert more(replace(layout, zero_stage=3)) == 0


@pytest.mark.parametrize("cluster", ["dgx_a100_80g", "a100_pcie_40g", "dgx_a100_40g"])
def test_gpus_without_fp8_are_refused_in_one_message(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", f"cluster={cluster}", *LLAMA, FP8]) == 2
    said = capsys.readouterr().err
    assert "train.gemm_dtype=fp8" in said and "has no products in fp8" in said and "set train.gemm_dtype=auto" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("gpu", ["h100_sxm", "h200_sxm", "gh200", "b200_sxm", "l40s"])
def test_gpus_with_fp8_are_faster_with_it(gpu: str) -> None:
    words = ["cluster=dgx_h100", f"gpu@cluster.node.gpu={gpu}", *LLAMA, "layout.tp=1", "layout.pp=1", "layout.dp=8"]
    times = [estimate([*words, "layout.micro_batch=1", *more]).step_time_s for more in ((), (FP8,))]
    assert times[1] < 0.95 * times[0]


def test_fp8_goes_with_half_precision_alone() -> None:
    with pytest.raises(LauncherError, match=r"train.gemm_dtype=fp8 goes with train.dtype=bf16 or fp16, not fp32"):
        estimate(["cluster=dgx_h100", *LLAMA, FP8, "train.dtype=fp32"])


def test_a_run_of_our_engines_refuses_it_and_a_search_for_other_software_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "recipe=gpt", "cluster=dgx_h100", *LLAMA, FP8, "dry_run=true"]) == 2
    said = capsys.readouterr().err
    assert "the launcher's engines compute products in train.dtype: set train.gemm_dtype=auto" in said
    found = Job.from_overrides(["cluster=dgx_h100", *LLAMA, FP8, "stack=megatron_lm"]).search(top=1)
    assert found.candidates


def test_megatron_lm_is_given_the_flag_and_other_tools_miss_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "to=megatron", "cluster=dgx_h100", *LLAMA, FP8]) == 0
    out, err = capsys.readouterr()
    assert "--fp8-format hybrid" in out.replace("\n", " ") and "fp8" not in err
    assert main(["export", "to=torchtitan", "cluster=dgx_h100", *LLAMA, FP8]) == 0
    assert "cannot express products in fp8 (train.gemm_dtype)" in capsys.readouterr().err


# Sequence, context parallelism, tokens a second and GPU: the same page, table 2 (8 GPUs, full recomputation, Float8).
LONG = [(65536, 2, 2540), (131072, 4, 1071), (262144, 8, 548)]


@pytest.mark.parametrize(("seq_len", "cp", "tokens_per_s"), LONG)
def test_published_steps_with_divided_sequences_are_in_their_interval(
    seq_len: int, cp: int, tokens_per_s: float
) -> None:
    """Every one is slower than estimated, by up to 1.9: nothing of the model explains it, and the interval says so."""
    words = (
        "cluster=dgx_h100 cluster.node.gpu.memory_mib=98304 cluster.node.gpu.hbm_gbytes_per_s=2400 model=llama3_8b "
        f"stack=torchtitan stack.year=2024 stack.compile=true layout.cp={cp} layout.dp={8 // cp} layout.zero_stage=3 "
        f"layout.recompute=full model.seq_len={seq_len} train.global_batch={8 // cp}"
    )
    found = estimate([*words.split(), FP8])
    low, high = found.step_time_interval_s
    assert low < found.step_time_s < seq_len / cp / tokens_per_s < high
