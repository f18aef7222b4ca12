"""Rates of kernels by GPU: its file has them with a source, or says what they are scaled from; a measured one wins."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.api import estimate
from launcher.cluster import Gpu
from launcher.config.compose import load
from launcher.cost.attention import core_time
from launcher.cost.model import CostModel

FILES = Path(__file__).parents[2] / "configs" / "gpu"
GPUS = ("a100_sxm_80g", "a100_sxm_40g", "a100_pcie_80g", "a100_pcie_40g", "a100_sxm_64g", "a30", "a800_sxm_80g",
        "h100_sxm", "h100_pcie", "h100_nvl", "h200_sxm", "gh200", "b200_sxm", "l40s", "a10")  # fmt: skip
SCALED = re.compile(r"rates are scaled from|rates are the [AH]\d+'s|Not measured|constants\.py")


def gpu_of(name: str) -> Gpu:
    return load([f"gpu@cluster.node.gpu={name}"]).job.cluster.node.gpu


@pytest.mark.parametrize("name", GPUS)
def test_a_gpus_file_has_rates_with_their_source_or_says_what_they_are_scaled_from(name: str) -> None:
    text = (FILES / f"{name}.yaml").read_text()
    lines = text.splitlines()
    for before, line in pairwise(lines):
        if line.partition(":")[0] in ("gemm_tflops", "sustained_tflops", "attention_tflops"):
            assert "# " in line or "# " in before or "_tflops:" in before, line
    rated = gpu_of(name).gemm_flops or gpu_of(name).attention_flops
    assert rated or SCALED.search(text), "rates of its own, or the GPU that they are scaled from"


RATES = {
    "sustained_tflops.bf16=150": "compute",
    "gemm_tflops.bf16=150": "compute",
    "attention_tflops.flash=60": "compute",
    "hbm_gbytes_per_s=900": "compute",
    "copy_gbytes_per_s=900": "compute",
}


@pytest.mark.parametrize("rate", RATES)
def test_a_measured_rate_wins_by_the_same_key(rate: str) -> None:
    words = ["cluster=dgx_a100_80g", "model=llama2_7b", "train.global_batch=64", "layout.tp=1", "layout.pp=1"]
    usual, slow = estimate(words), estimate([*words, f"cluster.node.gpu.{rate}"])
    assert slow.time["compute"] > 1.03 * usual.time["compute"]


def test_attention_follows_kernel_and_head_size() -> None:
    model = CostModel(load(["cluster=dgx_h100", "model=llama3_8b", "layout.tp=1"]).job)
    shape = {"sequences": 1, "heads": 32, "queries": 8192, "keys": 8192}

    def rate(kernel: str, head_dim: int) -> float:
        found = core_time(model.device, model.constants, kernel=kernel, head_dim=head_dim, dropout=False, **shape)
        return head_dim / (found.forward_s + found.backward_s)

    assert 1.9 < rate("flash", 128) / rate("triton", 128) < 2.2  # 346 and 170 TFLOP/s
    assert 0.75 < rate("flash1", 128) / rate("triton", 128) < 0.9  # in CUDA, scaled from A100's two kernels
    assert 0.85 < rate("flash", 64) / rate("flash", 128) < 0.95
