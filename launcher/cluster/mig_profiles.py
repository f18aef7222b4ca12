"""How whole GPUs can be cut by MIG, and what a slice of them is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from launcher.cluster.shape import Gpu
from launcher.units import GIB

MEMORY_SLICES = 8  # that every one of these GPUs has


@dataclass(frozen=True)
class Profile:
    """A row of `nvidia-smi mig -lgip`: how many fit a GPU, and what one of them has."""

    name: str
    instances: int
    memory_gib: float
    num_sms: int


# As `nvidia-smi mig -lgip` prints them (driver 470 and later), without media extensions:
# https://docs.nvidia.com/datacenter/tesla/mig-user-guide/supported-mig-profiles.html
_A100_80 = (
    Profile("1g.10gb", 7, 9.5, 14), Profile("2g.20gb", 3, 19.5, 28), Profile("3g.40gb", 2, 39.25, 42),
    Profile("4g.40gb", 1, 39.25, 56), Profile("7g.80gb", 1, 78.75, 98),
)  # fmt: skip
_A100_40 = (
    Profile("1g.5gb", 7, 4.75, 14), Profile("2g.10gb", 3, 9.75, 28), Profile("3g.20gb", 2, 19.62, 42),
    Profile("4g.20gb", 1, 19.62, 56), Profile("7g.40gb", 1, 39.5, 98),
)  # fmt: skip
PROFILES: Mapping[str, tuple[Profile, ...]] = MappingProxyType(
    {"a100_sxm_80g": _A100_80, "a100_pcie_80g": _A100_80, "a100_sxm_40g": _A100_40, "a100_pcie_40g": _A100_40}
)


def slice_of(gpu: Gpu, profile: Profile) -> Gpu:
    """One slice: its memory channels, its share of the SMs, no NVLink; PCIe is shared by all slices of the GPU."""
    memory = profile.memory_gib * GIB
    channels = max(1, round(MEMORY_SLICES * memory / gpu.memory_bytes))
    sms = profile.num_sms / gpu.num_sms
    return replace(
        gpu,
        name=f"{gpu.name} {profile.name}",
        memory_bytes=int(memory),
        hbm_bytes_per_s=gpu.hbm_bytes_per_s * channels / MEMORY_SLICES,
        num_sms=profile.num_sms,
        nvlink_bytes_per_s=0.0,
        pcie_bytes_per_s=gpu.pcie_bytes_per_s / profile.instances,
        mig_profile=profile.name,
        price_per_hour=None if gpu.price_per_hour is None else gpu.price_per_hour / profile.instances,
        copy_bytes_per_s=None if gpu.copy_bytes_per_s is None else gpu.copy_bytes_per_s * channels / MEMORY_SLICES,
        peak_flops=_scaled(gpu.peak_flops, sms),
        gemm_flops=_scaled(gpu.gemm_flops, sms),
        sustained_flops=_scaled(gpu.sustained_flops, sms),
        attention_flops=_scaled(gpu.attention_flops, sms),
    )


def _scaled(rates: Mapping[str, float], share: float) -> dict[str, float]:
    return {name: rate * share for name, rate in rates.items()}
