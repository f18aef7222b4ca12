"""Time of a matrix product by shape: tile and wave quantization, epilogue, memory."""

from __future__ import annotations

from launcher.cost.device import Device


def gemm_s(device: Device, m: int, n: int, k: int, *, batch: int = 1) -> float:
    """Seconds of `batch` products of (m × k) by (k × n).

    Outputs are cut into tiles, one block each; blocks run in waves of `num_sms`, and the last wave counts in full
    (NVIDIA, "Matrix Multiplication Background": tile and wave quantization). `extra_k` represents a tile's prologue
    and epilogue. Idle SMs and stalls leave power to the rest: a product is bound by its waves at full clock, with
    prologues and epilogues, or by its FLOPs at the clock that the power limit sustains, whichever is slower. So
    measured rates hardly depend on the last wave (234.9 … 255.4 TFLOP/s at 0.95 … 1.00 full waves in the EleutherAI
    cookbook), except where few blocks run. It cannot be faster than its operands pass through memory.
    """
    if not m or not n or not k:
        return 0.0
    sms, full_clock = device.num_sms, (k + device.extra_k) / (k * device.clock_margin)
    best, area = float("inf"), m * n * batch
    for tile_m, tile_n, rate in device.tiles:
        if best <= area:  # nothing is wasted
            break
        blocks = -(-m // tile_m) * -(-n // tile_n) * batch
        waves = -(-blocks // sms) * sms * full_clock / rate
        work = (waves if waves > blocks else blocks) * tile_m * tile_n
        if work < best:  # no min and max: most of an estimate's time goes through here
            best = work
    math_s = 2.0 * best * k / device.gemm_flops
    memory_s = batch * device.dtype_bytes * (m * k + k * n + m * n) / device.hbm_bytes_per_s
    return max(math_s, memory_s) + device.gap_s
