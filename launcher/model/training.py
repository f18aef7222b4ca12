"""How a model is trained, as far as speed, memory and the loss depend on it. Knows no hardware and no layout."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.units import DTYPE_BYTES

ATTENTION_KERNELS = ("math", "fused", "flash1", "flash")
OPTIMIZERS = ("adamw", "adam", "sgd")
ENGINES = ("torch", "deepspeed")
DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Training:
    """Batch, number formats, kernels and software of a training job.

    attention: `math` (separate softmax), `fused` (Megatron's fused softmax), `flash1`, `flash` (version 2).
    software_year: how good the kernels of that year's stack are; the one setting for a software generation.
    """

    global_batch: int  # sequences
    dtype: str = "bf16"
    optimizer: str = "adamw"
    attention: str = "flash"
    fused_norm: bool = True
    software_year: int = 2024
    engine: str = "torch"
    overlap_grad_reduce: bool = True
    grad_reduce_dtype: str = "fp32"
    offload_optimizer: bool = False

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]
