"""Time of a matrix product by shape: tile and wave quantization, epilogue, memory."""

from __future__ import annotations

from launcher.cost.device import Device


def gemm_s(device: Device, m: int, n: int, k: int, *, batch: int = 1) -> float:
    """Seconds of `batch` products of (m × k) by (k × n).

    Outputs are cut into tiles, one block each; blocks run in waves of `num_sms`, and the last wave counts in full
    (NVIDIA, "Matrix Multiplication Background": tile and wave quantization). `extra_k` stands for a tile's prologue
    and epilogue. The product cannot be faster than its operands pass through memory.
    """
    if not m or not n or not k:
        return 0.0
    sms = device.num_sms
    best = float("inf")
    for tile_m, tile_n, rate in device.tiles:
        blocks = -(-m // tile_m) * -(-n // tile_n) * batch
        waves = -(-blocks // sms)
        best = min(best, waves * tile_m * tile_n / rate)
    math_s = 2.0 * best * (k + device.extra_k) * sms / device.gemm_flops
    memory_s = batch * device.dtype_bytes * (m * k + k * n + m * n) / device.hbm_bytes_per_s
    return max(math_s, memory_s) + device.gap_s
