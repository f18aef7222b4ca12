"""Matrix products: against measured rates, and the laws that hold whatever the constants."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import cluster

from launcher.cost.constants import DEFAULT
from launcher.cost.device import Device, device_of
from launcher.cost.gemm import gemm_s
from launcher.model import Training

A100 = device_of(cluster().node, Training(global_batch=1, dtype="fp16"), DEFAULT)
SIZES = st.integers(1, 40_000)

# EleutherAI cookbook, benchmarks/sizing/sample_results (A100, fp16): batch, m, n, k, TFLOP/s.
MEASURED = [
    (1, 8192, 12288, 4096, 241.6),
    (1, 8192, 4096, 4096, 234.9),
    (1, 8192, 16384, 4096, 241.1),
    (1, 8192, 4096, 16384, 252.8),
    (1, 8192, 51200, 4096, 255.4),
    (128, 1024, 1024, 1024, 227.3),
    (64, 2048, 2048, 256, 130.2),
    (64, 2048, 256, 2048, 219.0),
]


@pytest.mark.parametrize(("batch", "m", "n", "k", "tflops"), MEASURED)
def test_large_products_run_near_their_measured_rate(batch: int, m: int, n: int, k: int, tflops: float) -> None:
    estimated = 2e-12 * batch * m * n * k / gemm_s(A100, m, n, k, batch=batch)
    assert estimated == pytest.approx(tflops, rel=0.16)


@given(m=SIZES, n=SIZES, k=SIZES)
@settings(deadline=None)
def test_no_product_beats_the_peak_or_the_memory(m: int, n: int, k: int) -> None:
    seconds = gemm_s(A100, m, n, k)
    assert seconds >= 2 * m * n * k / 312e12
    assert seconds >= 2 * (m * k + k * n + m * n) / 2039e9


@given(m=SIZES, n=SIZES, k=SIZES)
@settings(deadline=None)
def test_a_longer_product_never_takes_less(m: int, n: int, k: int) -> None:
    assert gemm_s(A100, m, n, k + 1) >= gemm_s(A100, m, n, k)
    assert gemm_s(A100, m, n, k, batch=2) >= gemm_s(A100, m, n, k)


def test_a_block_too_many_costs_a_wave_where_clocks_cannot_make_it_up() -> None:
    tile_m, tile_n, _ = A100.tiles[0]
    narrow = Device(**{**A100.__dict__, "tiles": (A100.tiles[0],), "clock_margin": 1.0})
    full, more = (gemm_s(narrow, tile_m * rows, tile_n * 9, 4096) for rows in (12, 13))  # 108 and 117 blocks on 108 SMs
    assert more - narrow.gap_s == pytest.approx(2 * (full - narrow.gap_s))
