"""Time of the attention core (scores, softmax, weighted values) by kernel and shape."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.cost.constants import Constants
from launcher.cost.device import Device
from launcher.cost.elementwise import softmax
from launcher.cost.gemm import gemm_s

BLOCK_ROWS = 128  # query rows of one block of FlashAttention 2 (Dao 2023, section 3.3)


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
    if kernel in ("flash", "flash1"):
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
    """FlashAttention: only the causal half is computed; 2 products forward, 5 backward (Dao et al. 2022, 2023)."""
    fraction = constants.flash2_fraction if kernel == "flash" else constants.flash1_fraction
    narrow = head_dim / (head_dim + 16.0) * 144.0 / 128.0  # 64-wide heads run at 0.87 of 128-wide ones (same charts)
    rate = (
        (device.peak_flops or device.gemm_flops)
        * fraction
        * min(narrow, 1.05)
        * keys
        / (keys + constants.flash_half_seq)
    )
    forward = 2.0 * rows * queries * keys * head_dim  # half of 4 · queries · keys · head_dim
    blocks_s = _occupancy(device, rows, queries)
    return CoreTime(forward / rate * blocks_s, 2.5 * forward / rate * blocks_s, 1, 3)


def _occupancy(device: Device, rows: int, queries: int) -> float:
    """How much longer than with full SMs: too few blocks leave SMs idle, and the longest causal row ends last."""
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
    product_s = gemm_s(device, queries, keys, head_dim, batch=rows)
    values_s = gemm_s(device, queries, head_dim, keys, batch=rows)
    hbm, gap = device.hbm_bytes_per_s, device.gap_s
    forward = product_s + values_s + scores * traffic.forward_bytes / hbm + traffic.forward_kernels * gap
    transposed_s = gemm_s(device, keys, head_dim, queries, batch=rows)
    backward = (
        product_s + values_s + 2 * transposed_s + scores * traffic.backward_bytes / hbm + traffic.backward_kernels * gap
    )
    return CoreTime(forward, backward, 2 + traffic.forward_kernels, 4 + traffic.backward_kernels)
