"""The attention core: against published kernel rates, and what its shape does to it."""

from __future__ import annotations

import pytest
from shapes import cluster

from launcher.cost.attention import CoreTime, core_time
from launcher.cost.constants import DEFAULT
from launcher.cost.device import device_of
from launcher.model import Training

A100 = device_of(cluster().node, Training(global_batch=1, dtype="fp16"), DEFAULT)


def core(kernel: str, *, seq_len: int, head_dim: int, sequences: int = 16) -> CoreTime:
    return core_time(
        A100, DEFAULT, kernel=kernel, sequences=sequences, heads=2048 // head_dim,
        queries=seq_len, keys=seq_len, head_dim=head_dim, dropout=False,
    )  # fmt: skip


# FlashAttention README, A100 80 GB SXM, causal, forward and backward together, TFLOP/s; a cool GPU with one kernel.
@pytest.mark.parametrize(
    ("kernel", "head_dim", "seq_len", "tflops"),
    [
        ("flash", 128, 2048, 155), ("flash", 128, 8192, 182), ("flash", 64, 2048, 140), ("flash", 64, 8192, 165),
        ("flash1", 128, 2048, 69), ("flash1", 128, 8192, 80),
    ],
)  # fmt: skip
def test_flash_attention_runs_somewhat_below_its_isolated_rate(
    kernel: str, head_dim: int, seq_len: int, tflops: float
) -> None:
    found = core(kernel, seq_len=seq_len, head_dim=head_dim)
    flops = 7 * 16 * (2048 // head_dim) * seq_len**2 * head_dim  # 7 products, the causal half of 2 · s² · d each
    assert 0.75 * tflops < flops / (found.forward_s + found.backward_s) / 1e12 < 1.2 * tflops


@pytest.mark.parametrize(("kernel", "ratio"), [("flash", 63 / 73), ("flash1", 30 / 40), ("triton", 30 / 50)])
def test_the_backward_pass_runs_at_its_share_of_the_forward_rate(kernel: str, ratio: float) -> None:
    found = core(kernel, seq_len=4096, head_dim=128)
    assert 2.5 * found.forward_s / found.backward_s == pytest.approx(ratio, rel=0.02)


def test_heads_are_padded_in_flash_attention() -> None:
    assert core("flash", seq_len=2048, head_dim=80).forward_s / (2048 // 80) == pytest.approx(
        core("flash", seq_len=2048, head_dim=96).forward_s / (2048 // 96)
    )


def test_heads_of_odd_width_leave_the_tensor_cores() -> None:
    odd, even = (core("fused", seq_len=2048, head_dim=width, sequences=2) for width in (108, 112))
    assert odd.forward_s > 4 * even.forward_s
