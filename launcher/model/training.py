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
    fused_norm, fused_rotary: RMSNorm and rotary positions in one kernel each, or in plain PyTorch operators.
    dropout: probability in attention and residuals; None: whatever the layer's implementation runs (see launcher.cost).
    grad_reduce_dtype: dtype of gradients as they are held and reduced; None: fp32, but fp16 with dtype fp16
    (Megatron-LM's rule).
    """

    global_batch: int  # sequences
    dtype: str = "bf16"
    optimizer: str = "adamw"
    attention: str = "flash"
    fused_norm: bool = True
    software_year: int = 2024
    engine: str = "torch"
    overlap_grad_reduce: bool = True
    grad_reduce_dtype: str | None = None
    offload_optimizer: bool = False
    fused_rotary: bool = False
    dropout: float | None = None

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def reduce_dtype(self) -> str:
        """Dtype in which gradients are held and reduced."""
        return self.grad_reduce_dtype or ("fp16" if self.dtype == "fp16" else "fp32")

    @property
    def async_tensor_parallel(self) -> bool:
        """Whether the backward pass's tensor-parallel collectives run beside the weight gradient's GEMM.

        Megatron-LM does since late 2021 (Korthikanti et al. 2022, section 4.2.2).
        """
        return self.software_year >= 2022
