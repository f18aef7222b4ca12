"""Time of the attention core (scores, softmax, weighted values) by kernel and shape."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.cost.constants import Constants
from launcher.cost.device import Device
from launcher.cost.elementwise import softmax
from launcher.cost.gemm import gemm_s

BLOCK_ROWS = 128  # query rows of one block of FlashAttention 2 (Dao 2023, section 3.3)
HEAD_DIM_MULTIPLE = 32  # FlashAttention 2 pads heads to a multiple of it (flash_api.cpp, head_size_rounded)
# Forward rate over the rate of both passes together. Version 2 reaches 73 % of the peak forward and 63 % backward;
# version 1 in CUDA 30–50 and 25–35 %, 40 and 30 in the middle (Dao 2023, abstract and section 1). Of version 1 in
# Triton its own notes say that its forward is faster than in CUDA and its backward slower: 50 and 30 agree with runs
# with and without recomputation.
FLASH_FORWARD_LEAD = {"flash": 1.11, "flash1": 1.24, "triton": 1.475}
# Rows not aligned to 16 bytes keep batched products from the tensor cores: heads of 108 instead of 144
# half-precision elements lengthen a layer by 41 ms, 10 TFLOP/s for those products (BLOOM's layout search, 13,824 wide
# with 128 and with 96 heads).
ALIGNED_BYTES = 16
UNALIGNED_SLOWDOWN = 14.0


@dataclass(frozen=True)
class CoreTime:
    """Seconds and kernels of the attention core, forward and backward (without recomputing it)."""

    forward_s: float
    backward_s: float
    forward_kernels: int
    backward_kernels: int


def core_time(
    device: Device,
    constants: Constants,
    *,
    kernel: str,
    sequences: int,
    heads: int,
    queries: int,
    keys: int,
    head_dim: int,
    dropout: bool,
) -> CoreTime:
    """The core of `heads` heads over `sequences` sequences, `queries` × `keys` positions each."""
    if kernel in FLASH_FORWARD_LEAD:
        return _flash(
            device, constants, kernel=kernel, rows=sequences * heads, queries=queries, keys=keys, head_dim=head_dim
        )
    return _separate(
        device,
        constants,
        kernel=kernel,
        rows=sequences * heads,
        queries=queries,
        keys=keys,
        head_dim=head_dim,
        dropout=dropout,
    )


def _flash(
    device: Device, constants: Constants, *, kernel: str, rows: int, queries: int, keys: int, head_dim: int
) -> CoreTime:
    """FlashAttention: only the causal half is computed; 2 products forward, 5 backward (Dao et al. 2022, 2023).

    Heads are padded; 64-wide ones run at 0.9 of 128-wide ones in version 2 (README charts), in version 1 as fast.
    """
    fraction = {"flash": constants.flash2_fraction, "flash1": constants.flash1_fraction}.get(
        kernel, constants.triton_fraction
    )
    lead = FLASH_FORWARD_LEAD[kernel]
    padded = -(-head_dim // HEAD_DIM_MULTIPLE) * HEAD_DIM_MULTIPLE
    narrow = 1.0 if kernel != "flash" else min(1.05, padded / (padded + 16.0) * 144.0 / 128.0)
    peak = device.peak_flops or device.gemm_flops
    rate = device.attention_flops.get(kernel, peak * fraction) * narrow * keys / (keys + constants.flash_half_seq)
    product_s = float(rows) * queries * keys * padded / rate * _occupancy(device, rows, queries)
    forward_s = 2.0 / lead * product_s
    return CoreTime(forward_s, 7.0 * product_s - forward_s, 1, 3)  # 7 products at the rate of both passes together


def _occupancy(device: Device, rows: int, queries: int) -> float:
    """Return the slowdown against full SMs: too few blocks leave SMs idle, and the longest causal row ends last."""
    blocks = rows * -(-queries // BLOCK_ROWS)
    return max(1.0, 2.0 * device.num_sms / max(blocks, 1)) if blocks < 2 * device.num_sms else 1.0


def _separate(
    device: Device,
    constants: Constants,
    *,
    kernel: str,
    rows: int,
    queries: int,
    keys: int,
    head_dim: int,
    dropout: bool,
) -> CoreTime:
    """Scores and weighted values as batched products, softmax between them through memory; in full, not causal."""
    scores = float(rows * queries * keys)
    traffic = softmax(device.dtype_bytes, kernel=kernel, dropout=dropout, math_bytes=constants.math_softmax_bytes)
    scores *= 1.0 if kernel == "math" else constants.score_slowdown
    slower = UNALIGNED_SLOWDOWN if head_dim * device.dtype_bytes % ALIGNED_BYTES else 1.0
    product_s = slower * gemm_s(device, queries, keys, head_dim, batch=rows)
    values_s = slower * gemm_s(device, queries, head_dim, keys, batch=rows)
    hbm, gap = device.hbm_bytes_per_s, device.gap_s
    forward = product_s + values_s + scores * traffic.forward_bytes / hbm + traffic.forward_kernels * gap
    transposed_s = slower * gemm_s(device, keys, head_dim, queries, batch=rows)
    backward = (
        product_s + values_s + 2 * transposed_s + scores * traffic.backward_bytes / hbm + traffic.backward_kernels * gap
    )
    return CoreTime(forward, backward, 2 + traffic.forward_kernels, 4 + traffic.backward_kernels)
