"""The compute device of a rank: a GPU's (or CPU core's) rates for a dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from launcher.cluster import Gpu, Node
from launcher.cost.constants import Constants
from launcher.errors import InputError
from launcher.model import Training
from launcher.units import DTYPE_BYTES

# A CPU core without a measured rate: cores of Xeon and EPYC servers with AVX-512 do 85 to 97 GFLOP/s in fp32 on large
# squares (recipe gemm), 64 to 93 on the products of a small GPT, forward and backward. A measured `gemm_tflops` in the
# GPU's file replaces it.
CPU_CORE_FLOPS = 80e9
# Rate of torch's attention on a CPU core over that of products: 21 to 29 GFLOP/s of the causal half, forward and
# backward, heads of 32 and 64, which the kernel model takes as narrow ones.
CPU_ATTENTION_SHARE = 0.37


COPY_FRACTION = 0.854  # of the nameplate, a large copy: 1328 of 1555 GB/s on A100 40 GB (FlagPerf)


@dataclass(frozen=True)
class Device:
    """Achieved rates: FLOP/s of a large GEMM, bytes/s of a streaming kernel."""

    gemm_flops: float
    hbm_bytes_per_s: float
    peak_flops: float | None
    num_sms: int
    tiles: tuple[tuple[int, int, float], ...]
    extra_k: float
    clock_margin: float  # full clock over the clock that large GEMMs sustain
    gap_s: float
    dtype_bytes: int
    attention_flops: Mapping[str, float]
    fp8: Device | None = None  # of the layers' products, where they are in fp8

    @property
    def products(self) -> Device:
        """The rates of the layers' products."""
        return self.fp8 or self


# Output tile of a block, and its rate by what it reads: 2 (m + n) bytes for m·n multiplications, where the tensor
# cores of an SM do 1,024 a clock; the L2 cache gives an SM 5120 / 108 bytes a clock (A100 whitepaper).
CUDA_TILES = ((128, 128, 1.0), (128, 64, 0.99), (64, 64, 0.74))
CPU_TILES = ((16, 16, 1.0),)


def core_share(node: Node) -> float:
    """Return the fraction of a core per CPU rank: the node's cores over its ranks, at most 1; 1 for a GPU."""
    return min(1.0, node.cores / node.num_gpus) if node.gpu.kind == "cpu" and node.cores else 1.0


def host_constants(node: Node, constants: Constants) -> Constants:
    """Constants of a GPU, or of a CPU rank: its attention kernel is as fast at short sequences."""
    return replace(constants, flash_half_seq=0.0) if node.gpu.kind == "cpu" else constants


def device_of(node: Node, training: Training, constants: Constants) -> Device:
    """The device for a training's dtype, and for its products where they are in fp8."""
    device = _device_of(node, training, constants)
    return replace(device, fp8=_in_fp8(device, node.gpu, training, constants)) if training.fp8 else device


def _in_fp8(half: Device, gpu: Gpu, training: Training, constants: Constants) -> Device:
    """The rates of products in fp8: as the GPU's file says, else the share of their peak that half precision sustains
    of its own, an assumption: torchtitan's runs gain 28 % with them, 30 % are estimated (tests/cost/test_fp8.py).

    Raises InputError for a GPU without fp8, and where all else is not in half precision.
    """
    if gpu.kind != "cuda" or "fp8" not in gpu.peak_flops:
        raise InputError(
            f"train.gemm_dtype=fp8: {gpu.name} has no products in fp8 (known: {', '.join(gpu.peak_flops) or 'none'}): "
            "set train.gemm_dtype=auto, or cluster= to GPUs that have them (Ada, Hopper, Blackwell)"
        )
    if training.dtype_bytes != 2:
        raise InputError(
            f"train.gemm_dtype=fp8 goes with train.dtype=bf16 or fp16, not {training.dtype}: set one of them, or "
            "train.gemm_dtype=auto"
        )
    peak = gpu.peak_flops["fp8"]
    share = half.gemm_flops / half.peak_flops if half.peak_flops else constants.gemm_fraction
    rate = gpu.sustained_flops.get("fp8", share * peak)
    margin = max(1.0, peak * constants.issue_fraction / rate)
    return replace(half, gemm_flops=rate, peak_flops=peak, clock_margin=margin, dtype_bytes=DTYPE_BYTES["fp8"])


def _device_of(node: Node, training: Training, constants: Constants) -> Device:
    """The device for a training's dtype.

    The GEMM rate is what training sustains: as the GPU says, or of its measured rate (`gemm_flops`), or of the peak; a
    CPU rank without a measured rate is taken at CPU_CORE_FLOPS. Rates of a CPU rank are those of a whole core. Raises
    InputError for a GPU whose rate in that dtype is unknown.
    """
    gpu = node.gpu
    cuda = gpu.kind == "cuda"
    peak, measured = gpu.peak(training.dtype), gpu.gemm_flops.get(training.dtype)
    if cuda and not (measured or peak or gpu.sustained_flops.get(training.dtype)):
        known = ", ".join(gpu.peak_flops) or "none"
        raise InputError(
            f"the rate of {gpu.name} in {training.dtype} is unknown (known: {known}): "
            f"set train.dtype, or cluster.node.gpu.peak_tflops.{training.dtype}"
        )
    if cuda:
        sustained = constants.gemm_fraction / constants.best_gemm_fraction
        rate = measured * sustained if measured else (peak or 0.0) * constants.gemm_fraction
        rate = gpu.sustained_flops.get(training.dtype, rate)
    else:
        rate = measured or CPU_CORE_FLOPS
    return Device(
        gemm_flops=rate,
        hbm_bytes_per_s=_streaming_rate(gpu, constants),
        peak_flops=peak,
        num_sms=gpu.num_sms,
        tiles=CUDA_TILES if cuda else CPU_TILES,
        extra_k=constants.gemm_extra_k if cuda else 8.0,
        clock_margin=max(1.0, peak * constants.issue_fraction / rate) if peak else 1.0,
        gap_s=constants.kernel_gap_s if cuda else 0.0,  # of a CPU's operators, the engine's own seconds speak
        dtype_bytes=DTYPE_BYTES[training.dtype],
        attention_flops=_attention_rates(gpu, training) if cuda else {"flash": CPU_ATTENTION_SHARE * rate},
    )


def _attention_rates(gpu: Gpu, training: Training) -> Mapping[str, float]:
    return dict(gpu.attention_flops) if training.dtype != "fp32" else {}


def _streaming_rate(gpu: Gpu, constants: Constants) -> float:
    """Bytes/s of a streaming kernel: of a measured copy, or of the nameplate."""
    if gpu.copy_bytes_per_s is None:
        return gpu.hbm_bytes_per_s * constants.hbm_fraction
    return gpu.copy_bytes_per_s * (constants.hbm_fraction / COPY_FRACTION if gpu.kind == "cuda" else 1.0)
