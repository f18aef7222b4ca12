"""Training settings that affect speed, memory and the loss. Independent of hardware and layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from launcher.schema import AUTO, key, only_read
from launcher.units import DTYPE_BYTES

ATTENTION_KERNELS = ("math", "fused", "flash1", "flash")
OPTIMIZERS = ("adamw", "adam", "sgd")
ENGINES = ("torch", "deepspeed")
DTYPES = ("fp32", "bf16", "fp16")
GEMM_DTYPES = (AUTO, "fp8")
MOST_SEQUENCES = 10**8


@dataclass(frozen=True)
class Training:
    """Batch, number formats and kernels of a training job: the keys of `train.*` that an estimate needs.

    What its software does is in `launcher.stacks`.
    """

    global_batch: int = key(16, unit="sequences", minimum=1, maximum=MOST_SEQUENCES, meaning="sequences of a step")
    dtype: str = key(
        AUTO, derived=True, choices=DTYPES, meaning="number format of the training; auto: bf16, and fp32 on CPUs"
    )
    gemm_dtype: str = key(
        AUTO, choices=GEMM_DTYPES,
        meaning="number format of the layers' products: auto (train.dtype), or fp8 as Transformer Engine and torchao "
        "compute them, with all else in train.dtype",
    )  # fmt: skip
    optimizer: str = key("adamw", choices=OPTIMIZERS, meaning="what updates the parameters")
    attention: str = key(
        "flash", choices=ATTENTION_KERNELS,
        meaning="math (separate softmax), fused (Megatron's fused softmax), flash1 (FlashAttention 1) or flash (its "
        "newest version that the software has)",
    )  # fmt: skip
    engine: str = key("torch", choices=ENGINES, meaning="what trains")
    dropout: float | None = key(
        AUTO, auto=True, unit="1", minimum=0, below=1,
        meaning="probability in attention and residuals; auto: whatever the software runs",
    )  # fmt: skip

    also_read: ClassVar = {
        "offload_optimizer": only_read(
            bool | None, AUTO, auto=True, meaning="another name of layout.offload_optimizer, which has its value"
        )
    }

    @classmethod
    def from_keys(cls, given: dict[str, Any]) -> Training:
        """Make it without what is the layout's (`launcher.config.settings` has moved it there)."""
        return cls(**{name: value for name, value in given.items() if name not in cls.also_read})

    def __post_init__(self) -> None:
        """Replace `auto`; for CPUs, which are unknown here, configuration has set fp32."""
        if self.dtype == AUTO:
            object.__setattr__(self, "dtype", "bf16")

    @property
    def fp8(self) -> bool:
        """Whether the layers' products are computed in fp8."""
        return self.gemm_dtype == "fp8"

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]
